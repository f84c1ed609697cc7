# SPDX-License-Identifier: GPL-2.0
# Sourced by the scripts of this repository: where things are, how they talk.
# shellcheck shell=bash

set -euo pipefail

TOP=${TOP:-$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)}
# Everything that is made lies here; BUILD may point it elsewhere.
BUILD=$(realpath -m "${BUILD:-$TOP/build}")

say() { printf '%s\n' "$*"; }

die() {
	printf '%s: %s\n' "${0##*/}" "$*" >&2
	exit 1
}

# The base kernels; the first is the one that the series is written for, and the
# default.
mapfile -t BASES < <(sed -nE 's/^[^#]*\<linux-source-([0-9.]+)\s.*/\1/p' "$(dirname "${BASH_SOURCE[0]}")/packages")
export BASE=${BASE:-${BASES[0]}}
[[ " ${BASES[*]} " == *" $BASE "* ]] || die "BASE=$BASE: the series is for ${BASES[*]}"
# What is made of one base.  Beside it lie downloads, Xen and the compiler's cache.
WORK=$BUILD/$BASE
# shellcheck disable=SC2034  # used by the scripts that source this file
LOGS=$WORK/logs

# The comment at the top of a script, after its first two lines, is its --help.
help() {
	sed -n '3,/^[^#]/{s/^# \{0,1\}//p}' "$0"
	exit 0
}

# arch_of KERNEL, by its name in scripts/kernel
arch_of() {
	case $1 in
	arm64*) echo arm64 ;;
	*) echo x86 ;;
	esac
}

# cross_of KERNEL: the prefix of the compiler and of its tools
cross_of() { [ "$(arch_of "$1")" = x86 ] || echo aarch64-linux-gnu-; }

# arch_for_make KERNEL: what make is told about its architecture, a word a line
arch_for_make() { [ "$(arch_of "$1")" = x86 ] || printf '%s\n' ARCH=arm64 "CROSS_COMPILE=$(cross_of "$1")"; }

# debian_kernel_for_runner NAME[+dkms]: with the modules of scripts/dkms, if it says so.
# What the tests need that is a module there is loaded, too.
debian_kernel_for_runner() {
	local name=${1%+dkms} version file
	case $name in
	# Debian has built it without CONFIG_XEN_DOM0: it runs in guests.
	*-cloud) printf '%s\n' --kernel "${name%-cloud}" --guest-kernel "$name" ;;
	*) printf '%s\n' --kernel "$name" --module loop --module dm-mod ;;
	esac
	printf '%s\n' --guest-module loop --guest-module dm-mod
	[[ $1 == *+dkms ]] || return 0
	version=$(readlink "$BUILD/debian/$name")
	for file in "$BUILD/dkms/modules/$version"/*.ko; do
		[ -e "$file" ] || die "no modules of scripts/dkms for $name: run testbed/suites/dkms --build"
		[[ $name == *-cloud ]] || printf '%s\n' --module "$file"
		printf '%s\n' --guest-module "$file"
	done
}

# kernel_for_runner KERNEL: what testbed/runner/dom0 is told about it, a word a line
kernel_for_runner() {
	case $1 in
	arm64) printf '%s\n' --arch arm64 --kernel patched ;;
	arm64-*) printf '%s\n' --arch arm64 --kernel "${1#arm64-}" ;;
	debian-*) debian_kernel_for_runner "$1" ;;
	*) printf '%s\n' --kernel "$1" ;;
	esac
}

# The kernels that Debian has built, by the names that scripts/setup gives them
debian_kernels() { awk '$1 ~ /^debian-/ && !seen[$1]++ { print $1 }' "$TOP/scripts/packages"; }

# One build at a time of a base.
lock_build() {
	mkdir -p "$WORK" || die "cannot make $WORK"
	exec 9>"$WORK/.lock"
	flock -n 9 || die "another run is at work in $WORK: wait for it"
}

# bound COMMAND...: runs a command that also ends when this script is killed.
bound() { setpriv --pdeathsig TERM "$@"; }

# The runner's exit code where QEMU mixed up a domain and Xen, and how often it may
# shellcheck disable=SC2034  # used by the scripts that source this file
MIXED_UP=97 MIXES=2

# in_dom0 ARG...: testbed/runner/dom0 run ARG..., once more where QEMU mixed them up
in_dom0() {
	local status mixes=0
	until
		status=0
		bound "$TOP/testbed/runner/dom0" run "$@" || status=$?
		[ "$status" -ne "$MIXED_UP" ] || [ "$mixes" -eq "$MIXES" ]
	do
		mixes=$((mixes + 1))
	done
	return "$status"
}

# need_space MIB WHAT: WHAT is about to take that much of the disk.
need_space() {
	local free
	free=$(df -Pm "$BUILD" | awk 'NR == 2 { print $4 }')
	[ "$free" -ge "$1" ] ||
		die "$2 needs $1 MiB in $BUILD, $free MiB are free: make room, or set BUILD to another disk"
}

# objects LOG: how far a build of about ABOUT objects is
objects() { [ -z "${ABOUT:-}" ] || printf ', %d of about %d objects' "$(grep -cE '^  (AR|AS|CC|LD) ' "$1")" "$ABOUT"; }

# run_logged WHAT LOG COMMAND...: progress while it runs, the time it took when
# it ends, everything it prints in LOG; on failure the last lines and LOG's path.
run_logged() {
	local what=$1 log=$2 start=$SECONDS next=30 interrupted='' pid
	shift 2
	mkdir -p "$(dirname "$log")"
	trap 'interrupted=1' INT TERM
	# A session of its own, so that an interrupt reaches all it started; and
	# it ends when this script is killed.
	setsid setpriv --pdeathsig TERM "$@" >"$log" 2>&1 </dev/null 9>&- &
	pid=$!
	while kill -0 "$pid" 2>/dev/null; do
		if [ -n "$interrupted" ]; then
			kill -- "-$pid" 2>/dev/null || kill "$pid" 2>/dev/null || true
			wait "$pid" 2>/dev/null || true
			die "interrupted: $what; run it again to go on"
		fi
		if [ -t 1 ]; then
			printf '\r\033[K%s ... %d s%s  %.50s' "$what" $((SECONDS - start)) "$(objects "$log")" "$(tail -qn 1 "$log" | tr -d '\r')"
		elif [ $((SECONDS - start)) -ge "$next" ]; then
			say "$what ... $((SECONDS - start)) s$(objects "$log")"
			next=$((next + 30))
		fi
		sleep 0.2
	done
	trap - INT TERM
	[ ! -t 1 ] || printf '\r\033[K'
	if wait "$pid"; then
		say "$what: $((SECONDS - start)) s"
	else
		tail -n 20 "$log" >&2
		die "failed: $what (whole log: $log)"
	fi
}
