# Sourced by the commands here: boots a kernel with an initial RAM disk that pack.bash made, under QEMU or, if it is a
# user-mode-linux, as a plain process.
# shellcheck shell=bash

known_complaints=${BASH_SOURCE[0]%/*}/known_complaints

# How a kernel is run: "uml", or QEMU with "kvm" where the machine has it for this architecture, else with "tcg".
accelerator() { # directory of the kernel, arch
    if [ -x "$1/linux.uml" ]; then
        echo uml
    elif [ -n "${COIL_KERNELS_ACCEL:-}" ]; then
        echo "$COIL_KERNELS_ACCEL"
    elif [ "$2" = "$(host_arch)" ] && [ -r /dev/kvm ] && [ -w /dev/kvm ] &&
        { [ "$2" = arm64 ] || grep -qE '^flags.*\b(vmx|svm)\b' /proc/cpuinfo; }; then
        echo kvm
    else
        echo tcg
    fi
}

# Sets `machine` to the command that boots the kernel, with its console on stdout.
machine_command() { # directory of the kernel, arch, accelerator, initial RAM disk, MiB of memory, CPUs, log level
    local dir=$1 arch=$2 accel=$3 initrd=$4 mem=$5 cpus=$6 log_level=$7 cpu console image=$1/vmlinuz
    local append="panic=-1 oops=panic loglevel=$log_level"
    if [ "$accel" = uml ]; then
        # shellcheck disable=SC2054 # commas within words
        machine=("$dir/linux.uml" "mem=${mem}M" "initrd=$initrd" "uml_dir=${initrd%/*}" umid=uml
            con0=fd:0,fd:1 con=null ssl=null)
        # shellcheck disable=SC2206 # words of the kernel's command line
        machine+=($append)
        return
    fi
    case $arch in
    amd64)
        machine=(qemu-system-x86_64 -M pc)
        console=ttyS0 cpu=max,la57=off
        ;;
    arm64)
        # shellcheck disable=SC2054 # as above
        # Pointer authentication by the architecture's own cipher would take 4 times as long to boot.
        machine=(qemu-system-aarch64 -M virt,gic-version=3)
        console=ttyAMA0 cpu=max,pauth-impdef=on,lpa2=off
        ;;
    esac
    if [ "$accel" = kvm ]; then cpu=host; fi
    if [ -s "$dir/vmlinux" ]; then image=$dir/vmlinux; fi
    append+=" console=$console quiet random.trust_cpu=on random.trust_bootloader=on"
    # What costs a machine little and its emulation much: of two minutes, more than half a minute.
    append+=" mitigations=off init_on_alloc=0 transparent_hugepage=never audit=0 apparmor=0"
    machine+=(-accel "$accel" -cpu "$cpu" -m "$mem" -smp "$cpus" -kernel "$image" -initrd "$initrd" -append "$append"
        -nodefaults -display none -monitor none -serial stdio -net none -no-reboot)
}

# What is left of the kernel's complaints when those are taken out that known_complaints lists for it, each with the
# lines that follow it.
unknown_complaints() { # console log, kernel
    awk -F '\t' -v kernel="$2" '
        FNR == NR {
            if ($0 !~ /^#/ && $1 == kernel) pattern[++patterns] = $2
            next
        }
        /^guest: complaint / {
            show = 1
            for (i = 1; i <= patterns; i++)
                if ($0 ~ pattern[i]) show = 0
        }
        /^guest: (complaint|kernel) / && show {
            sub(/^guest: [a-z]* /, "")
            print
        }' "$known_complaints" "$1"
}

# User-mode-linux keeps its memory in a file, which it maps executable: in shared memory if that is large enough.
uml_memory_dir() { # MiB
    local free
    free=$(df -m --output=avail /dev/shm 2>/dev/null | tail -n 1)
    if [ "${free:-0}" -gt "$1" ]; then
        echo /dev/shm
    else
        echo "${TMPDIR:-/tmp}"
    fi
}

# Ends the guests whose initial RAM disks lie below a directory, for a trap: they are not in this process's group.
stop_guests() { # directory
    local file
    for file in "$1/pid" "$1"/*/pid; do
        if [ -s "$file" ]; then kill "$(cat "$file")" 2>/dev/null; fi
    done
}

# Boots once. The console goes to the log, what the command says to stdout too. Returns the command's exit status.
boot_once() { # kernel, arch, initial RAM disk, log, seconds, MiB, CPUs, log level
    local kernel=$1 arch=$2 log=$4 limit=$5 dir accel ended status
    local -a machine
    dir=$(kernel_dir "$kernel" "$arch")
    accel=$(accelerator "$dir" "$arch")
    machine_command "$dir" "$arch" "$accel" "$3" "$6" "$7" "$8"
    {
        TMPDIR=$(uml_memory_dir "$6") timeout -k 5 "$limit" "${machine[@]}" </dev/null 2>&1 &
        echo "$!" >"${3%/*}/pid"
        wait "$!"
        echo "guest: ended $?"
        rm -f "${3%/*}/pid"
    } | tr -d '\r' | tee "$log" | sed -u -n '/^guest: begin/,/^guest: /{/^guest: /d;p}'
    ended=$(sed -n 's/^guest: ended //p' "$log")
    status=$(sed -n 's/^guest: end //p' "$log" | tail -n 1)
    case $status:$ended in
    [0-9]*:*) return "$status" ;;
    :124 | :137) return "$exit_time_box" ;;
    *) return "$exit_broken" ;;
    esac
}

# Emulated machines with several CPUs sometimes die while they start (about 1 in 50, of kernels that patch their own
# code): one that dies before the command begins is booted again. Says what happened on stderr.
boot() { # as boot_once
    local kernel=$1 log=$4 limit=$5 status attempt
    for attempt in 1 2 3; do
        boot_once "$@"
        status=$?
        if grep -aq '^guest: begin' "$log" || [ "$attempt" = 3 ]; then break; fi
        say "$kernel on $2 died before the command began: booting again"
    done
    if ! grep -aq '^guest: end ' "$log"; then
        if [ "$status" = "$exit_time_box" ]; then
            say "$kernel on $2: not done after $limit s"
        else
            say "$kernel on $2: ended without a result"
        fi
        say "the end of its console:"
        grep -av '^guest: ended' "$log" | tail -n 30 >&2
    elif [ -n "$(unknown_complaints "$log" "$kernel")" ]; then
        say "$kernel on $2: the kernel complained:"
        unknown_complaints "$log" "$kernel" | head -n 60 >&2
        if [ "$status" = 0 ]; then status=$exit_complaints; fi
    fi
    return "$status"
}
