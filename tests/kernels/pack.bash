# Sourced by the commands here: an initial RAM disk with busybox, guest/init, some files, and the libraries they need.
# shellcheck shell=bash

guest_files=${BASH_SOURCE[0]%/*}/guest

# Lays down what every guest has.
make_root() { # directory, arch, user id
    local root=$1 uid=$3
    mkdir -p "$root"/{bin,lib,etc,proc,sys,dev,tmp,t,root,var,usr,run}
    ln -s /lib "$root/usr/lib"
    ln -s /bin "$root/usr/bin"
    ln -s /tmp "$root/var/tmp"
    cp "$cache/busybox-$2" "$root/bin/busybox"
    cp "$guest_files/init" "$root/init"
    chmod 755 "$root/init"
    printf 'root:x:0:0::/tmp:/bin/sh\ntester:x:%s:%s::/tmp:/bin/sh\n' "$uid" "$uid" >"$root/etc/passwd"
    printf 'root:x:0:\ntester:x:%s:\n' "$uid" >"$root/etc/group"
    echo '127.0.0.1 localhost' >"$root/etc/hosts"
}

# Copies HOSTPATH to /t, HOSTPATH=GUESTPATH to there; directories with all that is in them.
add_files() { # directory of the root, file...
    local root=$1 file from to
    shift
    for file in "$@"; do
        from=${file%%=*}
        to=/t/${from##*/}
        if [[ $file == *=* ]]; then to=${file#*=}; fi
        [ -e "$from" ] || die "no such file: $from"
        mkdir -p "$root${to%/*}"
        cp -RLp "$from" "$root$to" || die "cannot copy $from"
    done
}

# ---- libraries: found as the loader would find them, by reading the files and never by running one ----

is_for() { # file, arch
    local machine=62
    if [ "$2" = arm64 ]; then machine=183; fi
    is_elf "$1" && [ "$(word_at "$1" 18 u2)" = "$machine" ]
}

library_path() { # arch, sysroot or nothing
    local triplet dir
    triplet=$(triplet "$1")
    for dir in "$2"{,/usr,/usr/local}/lib/"$triplet" "$2"{/usr/local/lib,/lib,/usr/lib,/lib64} \
        /usr/lib/gcc-cross/"$triplet"/* /usr/"$triplet"/lib; do
        if [ -d "$dir" ]; then echo "$dir"; fi
    done
}

elf_needs() { # file
    readelf -dW "$1" 2>/dev/null | sed -n 's/.*(NEEDED).*\[\(.*\)\]/\1/p'
}

elf_run_path() { # file
    readelf -dW "$1" 2>/dev/null | sed -n 's/.*(R\(UN\)\?PATH).*\[\(.*\)\]/\2/p' | tr ':' '\n' |
        sed "s|\$ORIGIN|${1%/*}|g"
}

# Puts the loader that a program names where the program looks for it.
add_interpreter() { # directory of the root, sysroot, program
    local interpreter
    interpreter=$(readelf -lW "$3" 2>/dev/null | sed -n 's/.*interpreter: \(.*\)\]/\1/p')
    if [ -z "$interpreter" ] || [ -e "$1$interpreter" ]; then return; fi
    [ -e "$2$interpreter" ] || die "$3 needs $interpreter, which is not in '${2:-/}'"
    mkdir -p "$1${interpreter%/*}"
    cp -L "$2$interpreter" "$1$interpreter"
}

# Everything ELF in the root, and what it needs in turn, gets its libraries. The C library opens libgcc_s by itself to
# end threads, so that it comes along with everything that is linked to libpthread or libc.
add_libraries() { # directory of the root, arch, sysroot or nothing
    local root=$1 file name dir found
    local -a queue search
    local -A seen=()
    mapfile -t search < <(library_path "$2" "$3")
    mapfile -t queue < <(find "$root" -type f \( -perm -u+x -o -name '*.so*' \) ! -path "$root/bin/busybox")
    while [ ${#queue[@]} -gt 0 ]; do
        file=${queue[0]}
        queue=("${queue[@]:1}")
        is_for "$file" "$2" || continue
        add_interpreter "$root" "$3" "$file"
        for name in $(elf_needs "$file") libgcc_s.so.1; do
            if [ -n "${seen[$name]:-}" ]; then continue; fi
            seen[$name]=yes
            found=
            for dir in $(elf_run_path "$file") "${search[@]}"; do
                if [ -e "$dir/$name" ]; then
                    found=$dir/$name
                    break
                fi
            done
            if [ -z "$found" ]; then
                [ "$name" = libgcc_s.so.1 ] && continue
                die "${file#"$root"} needs $name, which is not in ${search[*]}"
            fi
            if [ ! -e "$root/lib/$name" ]; then cp -L "$found" "$root/lib/$name"; fi
            queue+=("$root/lib/$name")
        done
    done
}

# ---- what guest/init reads ----

quoted() { # word...: as any sh understands it
    local word
    for word in "$@"; do
        printf "'%s' " "${word//\'/\'\\\'\'}"
    done
}

write_job() { # directory of the root, user id, locked memory, number of variables, K=V..., command...
    local root=$1 uid=$2 memlock=$3 count=$4 pair
    shift 4
    {
        echo "job_uid=$uid"
        echo "job_memlock=${memlock:-unlimited}"
        for pair in "${@:1:count}"; do
            echo "export ${pair%%=*}=$(quoted "${pair#*=}")"
        done
    } >"$root/job"
    shift "$count"
    echo "exec $(quoted "$@")" >"$root/job_command"
}

make_initrd() { # directory of the root, destination
    (cd "$1" && find . | "$cache/busybox-$(host_arch)" cpio -o -H newc -R 0:0 2>/dev/null) >"$2" ||
        die "cannot make the initial RAM disk"
}
