# Sourced by the commands here: which kernels there are, where the cache is, how to complain.
# shellcheck shell=bash

# The layout of the cache: apt/<suite>-<arch>/ (private package lists), kernels/<kernel>-<arch>/ (release, vmlinuz, and
# vmlinux or linux.uml), busybox-<arch>, sysroot-<arch>/.
cache=${COIL_KERNELS_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/coil/kernels}

# What ends a run without a verdict on the command. A command that passes while the kernel complains becomes 126.
# shellcheck disable=SC2034 # not every command uses each
readonly exit_skipped=77 exit_time_box=124 exit_broken=125 exit_complaints=126

# name, suite of the archive, which of its kernel packages (the newest that matches is taken), its flavour
kernel_list() {
    cat <<'LIST'
5.10uml   bullseye          uml                     um
5.10      bullseye          5\.10\.                 default
6.1       bookworm          6\.1\.                  default
6.12      trixie            6\.12\.                 default
6.12-16k  trixie            6\.12\.                 16k
6.19      trixie-backports  6\.19\.                 default
sid       sid               [0-9]+\.[0-9]+\.        default
LIST
}

# What the suite runs on. A kernel that ends in ? may be gone from the archive.
# shellcheck disable=SC2034 # used by suite
short_matrix="5.10uml/amd64 5.10/amd64 5.10/arm64 6.12/amd64 6.12/arm64"
# shellcheck disable=SC2034
full_matrix="5.10uml/amd64 5.10/amd64 6.1/amd64 6.12/amd64 6.19/amd64? sid/amd64
    5.10/arm64 6.1/arm64 6.12/arm64 6.12-16k/arm64? sid/arm64"

say() {
    echo "kernels: $*" >&2
}

die() {
    say "$*"
    exit "$exit_broken"
}

need_programs() {
    local program missing=()
    for program in "$@"; do
        command -v "$program" >/dev/null || missing+=("$program")
    done
    [ ${#missing[@]} = 0 ] || die "missing programs: ${missing[*]}"
}

need_arch() {
    case $1 in
    amd64 | arm64) ;;
    *) die "unknown architecture '$1' (amd64 or arm64)" ;;
    esac
}

triplet() { # arch
    case $1 in
    amd64) echo x86_64-linux-gnu ;;
    arm64) echo aarch64-linux-gnu ;;
    esac
}

host_arch() {
    dpkg --print-architecture
}

# Where the files of one kernel are.
kernel_dir() { # kernel, arch
    echo "$cache/kernels/$1-$2"
}

seconds_since() { # an earlier $EPOCHREALTIME
    awk -v from="$1" -v to="$EPOCHREALTIME" 'BEGIN { printf "%.1f", to - from }'
}
