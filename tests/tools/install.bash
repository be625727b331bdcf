# Sourced by tests/run and perf/run. install_missing base|tests|full: what the job needs, by apt-get, and only what is missing.

missing=()

want() { # package, then a command that succeeds where it is there
    local package=$1
    shift
    "$@" >/dev/null 2>&1 || missing+=("$package")
}

cmake_is_new_enough() {
    cmake --version | awk 'NR == 1 { split($3, v, "."); exit !(v[1] > 3 || (v[1] == 3 && v[2] >= 21)) }'
}

# The sanitizer runtimes of clang come in a package of their own, named after clang's version.
clang_sanitizes() {
    echo 'int main(void) { return 0; }' | clang -fsanitize=address,undefined -x c - -o /dev/null
}

# The oldest and the newest that the archive has. A fresh machine may have no lists of packages yet.
want_other_compilers() {
    local compiler
    [ -n "$(apt-cache pkgnames gcc-1)" ] || as_root apt-get update -qq
    for compiler in $(apt-cache pkgnames | grep -xE 'gcc-[0-9]+' | sort -V | sed -n '1p;$p'); do
        want "$compiler" command -v "$compiler"
        want "g++${compiler#gcc}" command -v "g++${compiler#gcc}"
    done
    for compiler in $(apt-cache pkgnames | grep -xE 'clang-[0-9]+' | sort -V | sed -n '1p;$p'); do
        want "$compiler" command -v "$compiler"
    done
}

as_root() {
    if [ "$(id -u)" = 0 ]; then
        "$@"
    else
        sudo -n "$@"
    fi
}

install_packages() {
    local log
    log=$(mktemp)
    echo "installing: $*"
    if ! { as_root apt-get update -qq &&
        as_root env DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends "$@"; } >"$log" 2>&1; then
        cat "$log" >&2
        echo "could not install $*: do so by hand, then start again" >&2
        rm -f "$log"
        return 1
    fi
    rm -f "$log"
}

install_missing() {
    missing=()
    want build-essential command -v g++
    want build-essential command -v make
    want cmake cmake_is_new_enough
    want pkg-config command -v pkg-config
    want liburing-dev pkg-config --exists 'liburing >= 2.3'
    want libcriterion-dev pkg-config --exists criterion
    want libdw-dev pkg-config --exists libdw
    if [ "$1" != base ]; then
        want gcc-aarch64-linux-gnu command -v aarch64-linux-gnu-gcc
        want qemu-system-x86 command -v qemu-system-x86_64
        want qemu-system-arm command -v qemu-system-aarch64
        want xz-utils command -v xz
        want zstd command -v zstd
    fi
    if [ "$1" = full ]; then
        want clang command -v clang++
        want clang-format command -v clang-format
        want clang-tidy command -v clang-tidy
        want g++-aarch64-linux-gnu command -v aarch64-linux-gnu-g++
        want musl-tools command -v musl-gcc
        want_other_compilers
        want qemu-user-static command -v qemu-aarch64-static
        want apache2-utils command -v ab
        want shellcheck command -v shellcheck
        want gdb command -v gdb
    fi
    if [ ${#missing[@]} -gt 0 ]; then install_packages "${missing[@]}"; fi
    if [ "$1" = full ] && ! clang_sanitizes; then
        install_packages "libclang-rt-$(clang -dumpversion | cut -d. -f1)-dev"
    fi
    cmake_is_new_enough || {
        echo "CMake 3.21 or later is needed for the presets" >&2
        return 1
    }
}
