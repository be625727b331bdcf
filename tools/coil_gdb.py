"""Commands for gdb that know of coil's tasks, in a live process and in a core file.

    (gdb) source .../share/coil/coil_gdb.py
    (gdb) coil tasks
    (gdb) coil bt TASK

Nothing is called and nothing is changed in the program. The library needs its debugging information; records are
found through the list `workers` of runtime/worker.c, fields by their names. What is written down here a second time is
the layout of a saved context (runtime/arch/ctx.h), enum coil__state, and COIL__CHUNK0.

A call stack of a task that isn't running is had by an unwinder: while it is switched on, the frame that called the
thread's innermost one is the saved context of the task, and gdb walks on from there as it does anywhere."""

import bisect
import struct
import time

import gdb
import gdb.unwinder

FREE, READY, RUNNING, PARKED, ENDED = range(5)
CHUNK0 = 256
FRAMES_MAX = 200
WALK_MAX = 64
INDENT_MAX = 20
NEVER = (1 << 63) - 1
NAMED_MAX = 4
# In struct mutex, rwlock and once, the owner follows the list of those who wait.
OWNER_AT = 16
OWNED = ("mutex", "read lock", "write lock", "once")
# Where the kernel has guard regions (Linux 6.13), gdb's own core files lack what it can't read in one piece.
GUARDS_HINT = ("(A core file made by gdb lacks stacks between guard regions: let the kernel write it, or run the program "
               "with COIL_CAPS=guard_install.)\n")
FORMATS = {(1, False): "B", (2, False): "H", (4, False): "I", (8, False): "Q",
           (1, True): "b", (2, True): "h", (4, True): "i", (8, True): "q"}


# ---- records, read in bulk ----

class Layout:
    """Fields of a struct, by paths of names: where each begins, and how it is unpacked."""

    def __init__(self, kind, paths):
        self.size = kind.sizeof
        self.fields = {}
        for path in paths:
            offset, at = 0, kind
            for name in path.split("."):
                field = at.strip_typedefs()[name]
                offset += field.bitpos // 8
                at = field.type.strip_typedefs()
            # An array is read as bytes.
            if at.code == gdb.TYPE_CODE_ARRAY:
                code = "%ds" % at.sizeof
            else:
                signed = at.code == gdb.TYPE_CODE_INT and gdb.Value(bytes(b"\xff" * at.sizeof), at) < 0
                code = FORMATS[(at.sizeof, bool(signed))]
            self.fields[path] = (offset, "<" + code)

    def get(self, memory, path, base=0):
        offset, code = self.fields[path]
        return struct.unpack_from(code, memory, base + offset)[0]


def read(address, size):
    """A copy of the program's memory; None: it is not there, or not in the core."""
    try:
        return bytes(gdb.selected_inferior().read_memory(address, size))
    except gdb.MemoryError:
        return None


class Cache(dict):
    def __init__(self, make):
        super().__init__()
        self.make = make

    def __missing__(self, key):
        self[key] = value = self.make(key)
        return value


def read_string(address):
    try:
        return gdb.Value(address).cast(gdb.lookup_type("char").pointer()).string(errors="replace")
    except gdb.error:
        return "?"


def name_of_code(pc):
    """The function; where there is no debugging information, what the program's table of symbols knows."""
    if pc == 0:
        return "?"
    functions = functions_at(pc)
    if functions:
        return functions[-1]
    text = gdb.execute("info symbol 0x%x" % pc, to_string=True)
    if text.startswith("No symbol"):
        return "0x%x" % pc
    return text.split(" in section ")[0].strip().replace(" + ", "+")


def functions_at(pc):
    """Those that the compiler has put into one another, innermost first."""
    names, block = [], gdb.block_for_pc(pc)
    while block is not None:
        if block.function is not None:
            names.append(block.function.print_name)
        block = block.superblock
    return names


def place_of_call(pc):
    """The call that returns to pc, as "function at file:line"."""
    if pc == 0:
        return None
    functions, sal = functions_at(pc - 1), gdb.find_pc_line(pc - 1)
    if functions and sal.symtab and sal.line:
        return "%s at %s:%d" % (functions[0], sal.symtab.filename, sal.line)
    return name_of_code(pc)


def seconds(ns):
    return "%d.%03d s" % (ns // 1000000000, ns // 1000000 % 1000)


# ---- workers and tasks ----

def is_here():
    """Whether the process runs on this machine, so that its clock is ours."""
    connection = getattr(gdb.selected_inferior(), "connection", None)
    return connection is not None and connection.type == "native"


class Coil:
    """The types, found anew by each command: the program may have been built again, or loaded a library."""

    def __init__(self):
        self.lists = self.find_lists()
        kind = self.lists[0].type.target()
        sched = kind["s"].type
        task = sched.strip_typedefs()["chunks"].type.target().target()
        wait = task.strip_typedefs()["wait"].type.target()
        stack = task.strip_typedefs()["stack"].type.target()
        self.task = Layout(task, ("ctx.sp", "wait", "state", "cancelled", "stack", "since_ns", "fn", "gen", "slot",
                                  "result", "site", "parent_slot", "parent_gen", "name", "limit_ns", "shielded", "group", "joiners.head.next"))
        self.wait = Layout(wait, ("what", "fd", "on", "until_ns", "entry.node.next"))
        self.node_at = self.wait.fields["entry.node.next"][0]
        self.owner_at = Layout(gdb.lookup_type("struct coil__group"), ("owner",)).fields["owner"][0]
        self.stack = Layout(stack, ("lo", "size"))
        self.string = Cache(read_string)
        self.code = Cache(name_of_code)
        self.place = Cache(place_of_call)
        self.start = int(gdb.parse_and_eval("(long)&coil__ctx_start"))

    @staticmethod
    def find_lists():
        found = []
        for symbol in gdb.lookup_static_symbols("workers"):
            kind = symbol.type.strip_typedefs()
            if kind.code == gdb.TYPE_CODE_PTR and kind.target().strip_typedefs().tag == "coil__worker":
                found.append(symbol.value())
        if found:
            return found
        try:
            gdb.parse_and_eval("(long)&coil_run_with")
        except gdb.error:
            raise gdb.GdbError("coil: this program has no coil in it, or libcoil isn't loaded yet, or it is stripped: "
                               "give gdb its symbols")
        raise gdb.GdbError("coil: libcoil has no debugging information (its `workers` and struct coil__worker are not "
                           "known): build it with -g, or install its debug symbols")

    def workers(self):
        found = []
        for head in self.lists:
            try:
                while int(head):
                    found.append(Worker(self, head.dereference()))
                    head = head["next"]
            except gdb.MemoryError:
                raise gdb.GdbError("coil: the list of workers can't be read: has the program been started?")
        return sorted(found, key=lambda w: w.number)


class Worker:
    def __init__(self, coil, value):
        sched = value["s"]
        self.coil = coil
        self.number = int(sched["worker"])
        self.now_ns = int(sched["now_ns"])
        if is_here():
            self.now_ns = max(self.now_ns, time.clock_gettime_ns(time.CLOCK_MONOTONIC))
        self.slots = int(sched["slots"])
        self.live = int(sched["live"])
        self.chunks = sched["chunks"]
        self.tasks = list(self.read_tasks())
        self.by_slot = {t.slot: t for t in self.tasks}
        self.by_address = {t.address: t for t in self.tasks}
        self.find_joiners()

    def find_joiners(self):
        """Who joins whom, from the lists of those who are joined."""
        node_at = self.coil.node_at
        waiting = {t.wait + node_at: t for t in self.tasks if t.state == PARKED}
        for task in self.tasks:
            node = task.first_joiner
            while node in waiting and waiting[node].joins is None:
                waiting[node].joins = task
                memory = read(node, 8)
                node = struct.unpack("<Q", memory)[0] if memory else 0

    def read_tasks(self):
        """All that are not free. Chunk k holds CHUNK0 << k records."""
        size, first, k = self.coil.task.size, 0, 0
        while first < self.slots:
            count = min(CHUNK0 << k, self.slots - first)
            base = int(self.chunks[k])
            memory = read(base, count * size)
            if memory is None:
                gdb.write("coil: the records of tasks %d to %d can't be read\n" % (first, first + count - 1))
            else:
                for i in range(count):
                    if self.coil.task.get(memory, "state", i * size) != FREE:
                        yield Task(self, base + i * size, memory[i * size:(i + 1) * size])
            first += count
            k += 1


class Task:
    def __init__(self, worker, address, memory):
        coil = worker.coil
        get = lambda path: coil.task.get(memory, path)
        self.worker, self.address = worker, address
        self.sp, self.wait, self.state = get("ctx.sp"), get("wait"), get("state")
        self.since_ns, self.fn, self.gen = get("since_ns"), get("fn"), get("gen")
        self.slot, self.result, self.site = get("slot"), get("result"), get("site")
        self.parent = (get("parent_slot"), get("parent_gen"))
        self.cancelled, self.first_joiner = get("cancelled"), get("joiners.head.next")
        self.limit_ns, self.shielded, self.group = get("limit_ns"), get("shielded"), get("group")
        self.joins = None
        self.limit_told = False
        self.name = get("name").split(b"\0")[0].decode(errors="replace")
        self.thread = None
        self.lo = self.size = 0
        # An ended one has given its stack back, or is about to.
        stack = None if self.state == ENDED else read(get("stack"), coil.stack.size)
        if stack:
            self.lo, self.size = coil.stack.get(stack, "lo"), coil.stack.get(stack, "size")

    def title(self):
        return '%d.%d "%s"' % (self.worker.number, self.slot, self.name or "task %d" % self.slot)

    def holds(self, sp):
        return self.lo <= sp < self.lo + self.size

    def saved(self):
        """Its registers, unless they are no good."""
        context = saved_context(self.sp) if self.holds(self.sp) else None
        return context if context and context.pc else None

    def begun(self):
        context = self.saved()
        return not context or context.pc != self.worker.coil.start


def mark_running(workers):
    """Which tasks have a thread on their stack. The stack pointer tells, and not the state: in the midst of a switch
    the two disagree, and then the thread is right."""
    tasks = sorted((t for w in workers for t in w.tasks if t.size), key=lambda t: t.lo)
    before = gdb.selected_thread()
    if not before or not tasks:
        return
    frame = gdb.selected_frame()
    lows = [t.lo for t in tasks]
    others = []
    for thread in gdb.selected_inferior().threads():
        thread.switch()
        if not put_on(thread, stack_pointer(gdb.newest_frame()), tasks, lows):
            others.append(thread)
    # A signal handler, or what it calls, may be on another stack than the task that it has interrupted.
    for thread in others:
        if all(t.thread for t in tasks if t.state == RUNNING):
            break
        thread.switch()
        walk(thread, tasks, lows)
    before.switch()
    frame.select()


def put_on(thread, sp, tasks, lows):
    at = bisect.bisect_right(lows, sp) - 1
    if at < 0 or not tasks[at].holds(sp):
        return False
    tasks[at].thread = thread
    return True


def walk(thread, tasks, lows):
    try:
        frame = gdb.newest_frame()
        for _ in range(WALK_MAX):
            if frame is None or put_on(thread, stack_pointer(frame), tasks, lows):
                return
            frame = frame.older()
    except gdb.error:
        pass  # What can't be unwound shows nothing.


def stack_pointer(frame):
    return int(frame.read_register("sp"))


# ---- saved contexts ----

class Context:
    def __init__(self, base, pc, sp, registers):
        self.base, self.pc, self.sp, self.registers = base, pc, sp, registers


def saved_context(sp):
    """What coil__ctx_jump has pushed: struct coil__ctx_frame."""
    arch = gdb.selected_inferior().architecture().name()
    if arch.startswith("aarch64"):
        return aarch64_context(sp)
    if arch.startswith("i386:x86-64"):
        return x86_64_context(sp)
    raise gdb.GdbError("coil: the layout of a saved context on %s is not known" % arch)


def x86_64_context(sp):
    memory = read(sp, 7 * 8)
    if memory is None:
        return None
    words = struct.unpack("<7Q", memory)
    registers = {name: memory[8 * i:8 * i + 8]
                 for i, name in enumerate(("r15", "r14", "r13", "r12", "rbx", "rbp", "rip"))}
    registers["rsp"] = struct.pack("<Q", sp + len(memory))
    return Context(sp, words[6], sp + len(memory), registers)


def aarch64_context(sp):
    size, x19 = 224, 128
    memory = read(sp, size)
    if memory is None:
        return None
    names = ["x%d" % n for n in range(19, 30)]
    registers = {name: memory[x19 + 8 * i:x19 + 8 * i + 8] for i, name in enumerate(names)}
    registers.update({"v%d" % (8 + i): memory[16 * i:16 * i + 16] for i in range(8)})
    pc = strip_signature(struct.unpack_from("<Q", memory, size - 8)[0])
    registers["pc"] = struct.pack("<Q", pc)
    registers["sp"] = struct.pack("<Q", sp + size)
    return Context(sp, pc, sp + size, registers)


def strip_signature(pc):
    """A signed return address has its signature in the bits that no address of a program uses."""
    try:
        return pc & ~int(gdb.parse_and_eval("(unsigned long)$pauth_cmask"))
    except gdb.error:
        return pc & ((1 << 48) - 1)


class TaskUnwinder(gdb.unwinder.Unwinder):
    """Off but for the time of one backtrace. Its artificial frame is the one whose registers are the thread's own; the
    frame's identity lies below the task's frames, or gdb would take them for a corrupt stack."""

    def __init__(self):
        super().__init__("coil-task")
        self.enabled = False
        self.context = None
        self.at = None

    def __call__(self, pending):
        if self.context is None or (int(pending.read_register("pc")), int(pending.read_register("sp"))) != self.at:
            return None
        info = pending.create_unwind_info(FrameId(self.context.base, self.at[0]))
        for name, content in self.context.registers.items():
            kind = pending.read_register(name).type
            info.add_saved_register(name, gdb.Value(content, kind))
        return info


class FrameId:
    def __init__(self, sp, pc):
        unsigned = gdb.lookup_type("unsigned long")
        self.sp, self.pc = gdb.Value(sp).cast(unsigned), gdb.Value(pc).cast(unsigned)


UNWINDER = TaskUnwinder()
gdb.unwinder.register_unwinder(None, UNWINDER, replace=True)


def with_frames_of(context, use):
    """Calls use(frame) with the innermost frame of a saved context."""
    level = gdb.selected_frame().level()
    newest = gdb.newest_frame()
    UNWINDER.at = (newest.pc(), stack_pointer(newest))
    UNWINDER.context = context
    UNWINDER.enabled = True
    gdb.invalidate_cached_frames()
    try:
        frame = gdb.newest_frame()
        while frame is not None and (frame.pc(), stack_pointer(frame)) == UNWINDER.at:
            frame = frame.older()
        use(frame)
    finally:
        UNWINDER.enabled = False
        UNWINDER.context = None
        gdb.invalidate_cached_frames()
        gdb.execute("frame level %d" % level, to_string=True)


def arguments(frame):
    try:
        block = frame.block()
        while block.function is None and block.superblock is not None:
            block = block.superblock
    except RuntimeError:
        return ""
    shown = []
    for symbol in block:
        if not symbol.is_argument:
            continue
        try:
            text = symbol.value(frame).format_string(max_elements=40, summary=True)
        except (gdb.error, RuntimeError):
            text = "?"
        shown.append("%s=%s" % (symbol.print_name, text))
    return ", ".join(shown)


def public_call(frame):
    """The public call that the task is in; where a compiler's options have let it be left by a jump, its caller."""
    # The innermost is coil__ctx_jump's caller, of arch/ctx.h.
    root, arch, _ = file_of(frame).rpartition("runtime/arch/")
    own = (root + "runtime/", root + "net/")
    at = frame
    while at is not None and arch and file_of(at).startswith(own):
        if (at.name() or "").startswith("coil_") and not at.name().startswith("coil__"):
            return at
        at = at.older()
    return at if at is not None and arch else frame


def file_of(frame):
    sal = frame.find_sal()
    return sal.symtab.filename if sal.symtab else ""


def print_frames(frame, full):
    if not full and frame is not None:
        frame = public_call(frame)
    number = 0
    while frame is not None and number < FRAMES_MAX:
        if frame.name() in ("coil__ctx_trampoline", "coil__ctx_start"):
            return  # Where a task's stack begins.
        sal = frame.find_sal()
        text = "#%-3d " % number
        if frame.type() != gdb.INLINE_FRAME and number > 0:
            text += "0x%016x in " % frame.pc()
        text += "%s (%s)" % (frame.name() or "??", arguments(frame))
        if sal.symtab and sal.line:
            text += " at %s:%d" % (sal.symtab.filename, sal.line)
        elif frame.name() is None or not sal.symtab:
            library = gdb.solib_name(frame.pc())
            text += " from %s" % library if library else ""
        gdb.write(text + "\n")
        number += 1
        frame = frame.older()
    if frame is not None:
        gdb.write("... and more\n")


# ---- what is printed ----

def find_at(workers, address):
    """The task whose record is at an address."""
    for worker in workers:
        if address in worker.by_address:
            return worker.by_address[address]
    return None


def describe_owner(task, on):
    memory = read(on + OWNER_AT, 16)
    where, gen = struct.unpack("<QQ", memory) if memory else (0, 0)
    if gen == 0:
        return " at 0x%x" % on
    owner = task.worker.by_slot.get(where >> 32)
    if owner and owner.gen == gen and owner.state != ENDED:
        return " held by %s" % owner.title()
    return " held by a task that has ended"


def describe_children(task, on):
    children = [t.title() for t in task.worker.tasks if t.group == on and t.state != ENDED]
    if not children:
        return " at 0x%x" % on
    return " of " + ", ".join(children[:NAMED_MAX]) + (" and others" if len(children) > NAMED_MAX else "")


def describe_on(task, what, on, workers):
    if what in OWNED:
        return describe_owner(task, on)
    if what in ("group", "gather", "race"):
        return describe_children(task, on)
    other = find_at(workers, on)
    return " of %s" % other.title() if other else " at 0x%x" % on


def describe_wait(task, workers):
    coil = task.worker.coil
    memory = read(task.wait, coil.wait.size)
    what = coil.wait.get(memory, "what") if memory else 0
    if what == 0:
        return "waits, for what can't be read, for %s" % seconds(max(task.worker.now_ns - task.since_ns, 0))
    text = "waits for %s" % coil.string[what]
    fd, on = coil.wait.get(memory, "fd"), coil.wait.get(memory, "on")
    if fd >= 0:
        text += " on descriptor %d" % fd
    elif task.joins:
        text += " of %s" % task.joins.title()
    elif on:
        text += describe_on(task, coil.string[what], on, workers)
    text += ", for %s" % seconds(max(task.worker.now_ns - task.since_ns, 0))
    until_ns = coil.wait.get(memory, "until_ns")
    if until_ns != NEVER:
        text += ", at most %s more" % seconds(max(until_ns - task.worker.now_ns, 0))
    task.limit_told = until_ns == task.limit_ns
    return text


def describe_state(task, workers):
    if task.state == ENDED:
        return "has ended with %d, and was not joined yet" % task.result
    if task.thread:
        return "runs on thread %d" % task.thread.num
    if not task.begun():
        return "ready to run, has not begun"
    if task.state == PARKED:
        return describe_wait(task, workers)
    return "ready to run" if task.state == READY else "about to run or just left"


def describe(task, workers):
    coil = task.worker.coil
    text = "%s: %s" % (task.title(), describe_state(task, workers))
    if task.state != ENDED and task.limit_ns != NEVER and not task.limit_told:
        left_ns = task.limit_ns - task.worker.now_ns
        text += (", limit in %s" if left_ns > 0 else ", limit over for %s") % seconds(abs(left_ns))
    if task.cancelled:
        text += ", cancelled"
    if task.shielded:
        text += ", shielded"
    text += "; runs %s" % coil.code[task.fn]
    place = coil.place[task.site]
    text += ", spawned in %s" % place if place else ", spawned by coil"
    if task.size and not task.thread and task.holds(task.sp):
        text += "; stack %d of %d" % (task.lo + task.size - task.sp, task.size)
    elif task.size:
        text += "; stack of %d" % task.size
    return text


def parent_of(task):
    """The owner of a child's group, or the task that spawned it while that one is there."""
    worker = task.worker
    if task.state != ENDED and task.group:
        memory = read(task.group + worker.coil.owner_at, 8)
        return worker.by_address.get(struct.unpack("<Q", memory)[0]) if memory else None
    slot, gen = task.parent
    parent = worker.by_slot.get(slot)
    return parent if gen and parent and parent.gen == gen else None


def in_tree_order(worker):
    """Pairs of depth and task; a task stands below its parent."""
    children, roots = {}, []
    for task in worker.tasks:
        parent = parent_of(task)
        if parent and parent is not task:
            children.setdefault(parent.slot, []).append(task)
        else:
            roots.append(task)
    rest = [(0, t) for t in reversed(roots)]
    while rest:
        depth, task = rest.pop()
        yield depth, task
        rest.extend((depth + 1, t) for t in reversed(children.get(task.slot, ())))


def read_all():
    if not gdb.selected_thread():
        raise gdb.GdbError("coil: no process and no core file")
    workers = Coil().workers()
    if not workers:
        gdb.write("coil: no run is under way\n")
    if workers and not is_here():
        gdb.write("(by the clock of the worker's last turn)\n")
    mark_running(workers)
    return workers


def chosen(workers, which):
    """Tasks that "all", a slot, worker.slot or a name mean."""
    everyone = [t for w in workers for t in w.tasks]
    if which == "all":
        return everyone
    by_number = [t for t in everyone if which in (str(t.slot), "%d.%d" % (t.worker.number, t.slot))]
    return by_number or [t for t in everyone if t.name == which]


def print_stack(task, workers, full):
    gdb.write("%s\n" % describe(task, workers))
    if task.state == ENDED:
        return
    if task.thread:
        before, frame = gdb.selected_thread(), gdb.selected_frame()
        task.thread.switch()
        print_frames(gdb.newest_frame(), True)
        before.switch()
        frame.select()
        return
    context = task.saved()
    if not context:
        gdb.write("its stack can't be read\n" + GUARDS_HINT)
    elif task.begun():
        with_frames_of(context, lambda frame: print_frames(frame, full))


class CoilCommand(gdb.Command):
    """Looks at the tasks of coil: "coil help" tells how."""

    def __init__(self):
        super().__init__("coil", gdb.COMMAND_STACK, gdb.COMPLETE_NONE, True)


class CoilTasks(gdb.Command):
    """Lists all tasks of all workers, each below the one that has spawned it:

    WORKER.SLOT "NAME": what it is at; the function it runs, where it was spawned; bytes of stack in use."""

    def __init__(self):
        super().__init__("coil tasks", gdb.COMMAND_STACK, gdb.COMPLETE_NONE)

    def invoke(self, argument, from_tty):
        workers = read_all()
        for worker in workers:
            gdb.write("worker %d: %d tasks live\n" % (worker.number, worker.live))
            lines = []
            for depth, task in in_tree_order(worker):
                lines.append("  " * min(depth + 1, INDENT_MAX) + describe(task, workers) + "\n")
                if len(lines) == 1000:
                    gdb.write("".join(lines))
                    lines = []
            gdb.write("".join(lines))


class CoilBt(gdb.Command):
    """Prints the call stack of a task: coil bt [-full] SLOT | WORKER.SLOT | NAME | all

    It begins at the call of coil that the task is in; -full shows what is inside of that as well."""

    def __init__(self):
        super().__init__("coil bt", gdb.COMMAND_STACK, gdb.COMPLETE_NONE)

    def invoke(self, argument, from_tty):
        which = argument.strip()
        full = which.split(" ")[0] == "-full"
        which = which[len("-full"):].strip() if full else which
        which = which.strip('"')
        if not which:
            raise gdb.GdbError("coil bt: which task? Give a slot, WORKER.SLOT, a name, or all")
        workers = read_all()
        tasks = chosen(workers, which)
        if not tasks and workers:
            raise gdb.GdbError("coil bt: no task is called %s; see coil tasks" % which)
        for task in tasks:
            print_stack(task, workers, full)


class CoilHelp(gdb.Command):
    """Tells what the commands of coil are."""

    def __init__(self):
        super().__init__("coil help", gdb.COMMAND_STACK, gdb.COMPLETE_NONE)

    def invoke(self, argument, from_tty):
        gdb.write("coil tasks      all tasks of all workers, as a tree of who has spawned whom\n"
                  "coil bt TASK    the call stack of a task: its slot, WORKER.SLOT, its name, or all;\n"
                  "                -full before it: with coil's inner frames\n"
                  "coil help       this\n"
                  "In a live process and in a core file; libcoil needs debugging information.\n")


CoilCommand()
CoilTasks()
CoilBt()
CoilHelp()
