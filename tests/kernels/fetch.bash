# Sourced by the commands here: kernels, busybox and sysroots from the Debian archive, unpacked and never installed.
# shellcheck shell=bash

# The archive that apt is configured with, unless COIL_KERNELS_URI names another.
archive_uri() {
    local uri=${COIL_KERNELS_URI:-}
    if [ -z "$uri" ]; then
        # shellcheck disable=SC2016 # apt's variable
        uri=$(unset APT_CONFIG && apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' 2>/dev/null |
            grep -v security | head -n 1)
    fi
    [ -n "$uri" ] || die "apt has no archive configured: set COIL_KERNELS_URI"
    echo "$uri"
}

# The release that this machine runs.
host_suite() {
    sed -n 's/^VERSION_CODENAME=//p' /etc/os-release
}

# Points apt at lists and state of its own, in the cache, for one suite and one architecture: the machine's own stay
# untouched, and nobody has to be root. Call it in a subshell.
use_private_apt() { # suite, arch
    local suite=$1 arch=$2 uri
    local dir=$cache/apt/$suite-$arch
    mkdir -p "$dir/lists/partial" "$dir/cache/archives/partial" || exit "$exit_broken"
    touch "$dir/status"
    uri=$(archive_uri) || exit "$exit_broken"
    echo "deb [arch=$arch] $uri $suite main" >"$dir/sources.list"
    cat >"$dir/apt.conf" <<CONF
Dir::State "$dir";
Dir::State::lists "$dir/lists";
Dir::State::status "$dir/status";
Dir::Cache "$dir/cache";
Dir::Etc::sourcelist "$dir/sources.list";
Dir::Etc::sourceparts "/dev/null";
Dir::Etc::preferencesparts "/dev/null";
Dir::Etc::preferences "/dev/null";
APT::Architecture "$arch";
APT::Architectures { "$arch"; };
APT::Sandbox::User "root";
Acquire::Languages "none";
Acquire::Retries "3";
#clear APT::Update::Post-Invoke;
#clear APT::Update::Post-Invoke-Success;
#clear DPkg::Post-Invoke;
CONF
    export APT_CONFIG=$dir/apt.conf
    update_lists "$dir" "$suite/$arch"
}

# apt-get update succeeds although files could not be had: its warnings tell.
update_lists() { # directory of the private apt, what to call it
    if [ -n "$(find "$1/stamp" -mmin -1440 2>/dev/null)" ]; then return; fi
    say "package lists of $2"
    if ! apt-get update -qq >"$1/log" 2>&1 || grep -qE '^[EW]:.*(Failed|404)' "$1/log"; then
        tail -n 3 "$1/log" >&2
        die "cannot read the package lists of $2"
    fi
    touch "$1/stamp"
}

download() { # directory, package...
    local dir=$1
    shift
    if ! (cd "$dir" && apt-get download -qq "$@") >"$dir/log" 2>&1; then
        tail -n 3 "$dir/log" >&2
        die "cannot download $*"
    fi
}

# One file out of a package, to stdout.
package_file() { # package file, pattern
    dpkg-deb --fsys-tarfile "$1" | tar -xO --wildcards "$2" 2>/dev/null
}

# Runs a function in a subshell of its own with an empty directory, which becomes the destination if it succeeds.
into_cache() { # destination, function, its arguments...
    local destination=$1
    shift
    rm -rf "$destination.tmp"
    mkdir -p "$destination.tmp" || exit "$exit_broken"
    ("$1" "$destination.tmp" "${@:2}") || {
        rm -rf "$destination.tmp"
        return "$exit_broken"
    }
    rm -rf "$destination"
    mv "$destination.tmp" "$destination"
}

# ---- kernels ----

fetch_kernel() { # kernel, arch
    local suite regex flavour directory
    need_arch "$2"
    directory=$(kernel_dir "$1" "$2")
    if [ -s "$directory/release" ]; then return; fi
    read -r suite regex flavour < <(kernel_list | awk -v name="$1" '$1 == name { print $2, $3, $4 }')
    [ -n "${suite:-}" ] || die "unknown kernel '$1' (kernels list tells which there are)"
    mkdir -p "$cache/kernels"
    if [ "$flavour" = um ]; then
        [ "$2" = amd64 ] || die "$1 exists for amd64 only"
        into_cache "$directory" unpack_uml_kernel "$suite"
    else
        if [ "$flavour" = default ]; then flavour=$2; else flavour=$2-$flavour; fi
        into_cache "$directory" unpack_kernel "$suite" "$2" "$regex" "$flavour"
    fi
}

# User-mode-linux is a kernel that is a program. Debian 11 built it from 5.10.46, older than its other kernels.
unpack_uml_kernel() { # directory, suite
    use_private_apt "$2" amd64
    say "downloading user-mode-linux"
    download "$1" user-mode-linux
    package_file "$1"/user-mode-linux_*.deb ./usr/bin/linux.uml >"$1/linux.uml" || die "no linux.uml in its package"
    chmod 755 "$1/linux.uml"
    rm -f "$1"/*.deb "$1/log"
    "$1/linux.uml" --version >"$1/release" || die "linux.uml does not run here"
}

unpack_kernel() { # directory, suite, arch, regex of its release, flavour
    local dir=$1 package
    use_private_apt "$2" "$3"
    package=$(apt-cache pkgnames linux-image- | grep -E "^linux-image-$4[^-]*(-[0-9]+)?-$5\$" | sort -V | tail -n 1)
    [ -n "$package" ] || die "no kernel like $4 for $5 in $2"
    say "downloading $package"
    download "$dir" "$package"
    find_vmlinuz "$dir" "$package" || die "no vmlinuz in $package"
    rm -f "$dir"/*.deb "$dir/log"
    if [ "$3" = amd64 ] && ! unpack_vmlinux "$dir/vmlinuz" "$dir/vmlinux"; then
        rm -f "$dir/vmlinux"
        say "$package has no image that boots directly: it starts through the BIOS, which is slower"
    fi
    echo "${package#linux-image-}" >"$dir/release"
}

# Newer packages keep the image in another one, on which they depend.
find_vmlinuz() { # directory, package
    local deb other
    package_file "$1"/linux-image-*.deb './boot/vmlinuz-*' >"$1/vmlinuz" && return
    apt-cache depends "$2" | sed -n 's/.*Depends: \(linux-\(binary\|image\)-[^ ]*\)$/\1/p' | while read -r other; do
        download "$1" "$other"
    done
    for deb in "$1"/*.deb; do
        package_file "$deb" './boot/vmlinuz-*' >"$1/vmlinuz" && return
        package_file "$deb" './usr/lib/modules/*/vmlinuz' >"$1/vmlinuz" && return
    done
    return 1
}

word_at() { # file, offset, od's type
    od -An -t"$3" -j"$2" -N"${3:1}" "$1" | tr -d ' '
}

# An x86 image carries an ELF file with an entry for virtual machines. Booting that skips the BIOS and the unpacking,
# which emulation makes slow. The offsets are those of the x86 boot protocol (setup_sects, payload_offset, payload_length).
unpack_vmlinux() { # bzImage, destination
    local sectors offset length unpack
    sectors=$(word_at "$1" 497 u1)
    if [ "$sectors" = 0 ]; then sectors=4; fi
    offset=$(((sectors + 1) * 512 + $(word_at "$1" 584 u4)))
    length=$(word_at "$1" 588 u4)
    case $(word_at "$1" "$offset" x4) in
    587a37fd) unpack=xz ;;
    fd2fb528) unpack=zstd ;;
    *8b1f) unpack=gzip ;;
    *) return 1 ;;
    esac
    # The last four bytes are the unpacked size, which is no part of the stream.
    tail -c +$((offset + 1)) "$1" | head -c $((length - 4)) | "$unpack" -dc >"$2" 2>/dev/null
    is_elf "$2" && readelf -nW "$2" 2>/dev/null | grep -q Xen
}

is_elf() { # file
    [ "$(head -c 4 "$1" 2>/dev/null | tail -c 3)" = ELF ]
}

# ---- busybox, sysroots ----

fetch_busybox() { # arch
    if [ -x "$cache/busybox-$1" ]; then return; fi
    into_cache "$cache/busybox-$1" unpack_busybox "$1"
}

# A static one, of the release that this machine runs. It takes the place of its directory.
unpack_busybox() { # directory, arch
    local deb pattern
    use_private_apt "$(host_suite)" "$2"
    say "downloading busybox for $2"
    download "$1" busybox-static
    deb=("$1"/busybox-static_*.deb)
    for pattern in ./bin/busybox ./usr/bin/busybox; do
        package_file "${deb[0]}" "$pattern" >"$1.file" && break
    done
    [ -s "$1.file" ] || die "no busybox in its package"
    chmod 755 "$1.file"
    rm -rf "$1"
    mv "$1.file" "$1"
}

# The directory of unpacked -dev packages and all that they need. Without packages named: what the tests need.
fetch_sysroot() { # arch, package...
    local arch=$1
    local dir=$cache/sysroot-$1
    shift
    if [ $# = 0 ]; then set -- libc6-dev liburing-dev libcriterion-dev; fi
    if [ "$(cat "$dir/.packages" 2>/dev/null)" != "$*" ]; then
        into_cache "$dir" unpack_sysroot "$arch" "$@" || return
    fi
    echo "$dir"
}

unpack_sysroot() { # directory, arch, package...
    local dir=$1 arch=$2 archives deb link
    shift 2
    use_private_apt "$(host_suite)" "$arch"
    archives=$cache/apt/$(host_suite)-$arch/cache/archives
    say "unpacking a sysroot for $arch: $*"
    if ! apt-get install -y -qq -d --no-install-recommends "$@" >"$cache/sysroot.log" 2>&1; then
        tail -n 3 "$cache/sysroot.log" >&2
        die "cannot download $* for $arch"
    fi
    for deb in "$archives"/*.deb; do
        dpkg-deb -x "$deb" "$dir" || die "cannot unpack $deb"
    done
    rm -f "$archives"/*.deb
    # Absolute links would lead out of the sysroot.
    find "$dir" -type l -lname '/*' | while read -r link; do
        ln -sfrT "$dir$(readlink "$link")" "$link"
    done
    echo "$*" >"$dir/.packages"
}
