// SPDX-License-Identifier: GPL-2.0
/*
 * Everything that a process, or the kernel, may do to memory that is mapped from
 * grants. A table says what each call returns, and what becomes of the mapping. One
 * page of the mapping is in use meanwhile. Calls that a kernel lacks are skipped.
 *
 * A call that is refused leaves the whole mapping in place. Where addresses are
 * translated the PTEs are normal ones, so fewer calls are refused, and nothing but the
 * end of the whole mapping unmaps grants.
 *
 * With XEN_SELFTEST_IDLE in the environment no page is in use. This is for kernels
 * that do not survive the end of a mapping otherwise.
 */
#include <limits.h>
#include <sched.h>
#include <stdint.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <linux/fs.h>
#include <linux/futex.h>
#include <linux/mempolicy.h>
#include <linux/userfaultfd.h>

#include "xen_grant.h"

#define RW		(PROT_READ | PROT_WRITE)
#define NR_PAGES	8
#define SIZE		(NR_PAGES * PAGE_SIZE)
/* The page that a pipe holds */
#define HELD		1

/* Newer than some C libraries */
#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE		25
#endif
#ifndef MADV_DONTNEED_LOCKED
#define MADV_DONTNEED_LOCKED	24
#endif
#ifndef MADV_POPULATE_READ
#define MADV_POPULATE_READ	22
#define MADV_POPULATE_WRITE	23
#endif
#ifndef MADV_SOFT_OFFLINE
#define MADV_SOFT_OFFLINE	101
#endif
#ifndef MADV_GUARD_INSTALL
#define MADV_GUARD_INSTALL	102
#define MADV_GUARD_REMOVE	103
#endif
#ifndef MREMAP_DONTUNMAP
#define MREMAP_DONTUNMAP	4
#endif
#ifndef PR_SET_MEMORY_MERGE
#define PR_SET_MEMORY_MERGE	67
#endif

/* What becomes of the mapping */
enum fate {
	KEPT,		/* The whole mapping is there, with its data. */
	GONE,		/* The PTEs are gone, access gives SIGBUS. */
	HALF,		/* The second half is unmapped, and access gives SIGSEGV. */
	/* Only where addresses are translated */
	READABLE,	/* All of the mapping can be read. */
	HIDDEN,		/* The mapping is there, and access gives SIGSEGV. */
	UNMAPPED,	/* All is unmapped, and access gives SIGSEGV. */
};

/* A call returns 0, -errno, or this if the kernel lacks it. */
#define LACKING		-255

struct mapping {
	struct xen_env *env;
	char *mem;
	int pipe[2];
	bool held;
};

FIXTURE(call)
{
	struct xen_env env;
	struct mapping map;
};

FIXTURE_VARIANT(call)
{
	int (*run)(struct mapping *map, long arg);
	long arg;
	int error;
	enum fate fate;
	const char *needs;	/* if not every kernel has it */
	/* What is different where addresses are translated */
	struct {
		bool differs;
		int error;
		enum fate fate;
	} translated;
};

FIXTURE_SETUP(call)
{
	xen_env_setup(_metadata, &self->env);
	if (_metadata->exit_code)
		return;
	self->map.env = &self->env;
	self->map.mem = gntdev_map(self->env.gntdev, self->env.grants.ref,
				   NR_PAGES, RW);
	ASSERT_NE(MAP_FAILED, self->map.mem);
	ASSERT_EQ(0, pipe2(self->map.pipe, O_CLOEXEC));
	self->map.held = !getenv("XEN_SELFTEST_IDLE");
	if (self->map.held)
		ASSERT_TRUE(hold(self->map.pipe, page(self->map.mem, HELD), 1));
}

FIXTURE_TEARDOWN(call)
{
	munmap(self->map.mem, SIZE);
	close(self->map.pipe[0]);
	close(self->map.pipe[1]);
	xen_env_teardown(_metadata, &self->env);
}

static bool page_gone(struct mapping *map, unsigned int i, enum fate fate)
{
	bool stays = (map->held && i == HELD) || (translated() && fate != UNMAPPED);
	grant_ref_t ref = map->env->grants.ref[i];

	if (access_signal(page(map->mem, i)) != (fate == GONE ? SIGBUS : SIGSEGV))
		return false;
	return stays ? grant_mapped(&map->env->table, ref) :
		       wait_for(!grant_mapped(&map->env->table, ref));
}

static bool is_readable(struct mapping *map)
{
	unsigned int i;

	for (i = 0; i < NR_PAGES; i++)
		if (access_signal(page(map->mem, i)) || !page_holds(page(map->mem, i), i) ||
		    !grant_mapped(&map->env->table, map->env->grants.ref[i]))
			return false;
	return true;
}

static bool has_fate(struct mapping *map, enum fate fate)
{
	unsigned int kept = fate == KEPT ? NR_PAGES : fate == HALF ? NR_PAGES / 2 : 0;
	unsigned int i;

	if (fate == READABLE)
		return is_readable(map);
	if (!pages_shared(map->env, map->mem, 0, kept))
		return false;
	for (i = kept; i < NR_PAGES; i++)
		if (!page_gone(map, i, fate))
			return false;
	return true;
}

TEST_F_TIMEOUT(call, is_as_the_table_says, 120)
{
	bool differs = translated() && variant->translated.differs;
	int error = variant->run(&self->map, variant->arg);
	char copy[PAGE_SIZE];

	if (error == LACKING)
		SKIP(return, "needs %s", variant->needs ?: "another kernel");
	EXPECT_EQ(differs ? variant->translated.error : variant->error, error);
	EXPECT_TRUE(has_fate(&self->map, differs ? variant->translated.fate : variant->fate));

	/* The pipe has its page, with the data, whatever became of the mapping. */
	if (!self->map.held)
		return;
	EXPECT_TRUE(drain(self->map.pipe, copy));
	EXPECT_TRUE(page_holds(copy, HELD));
}

#define CALL(name)		FIXTURE_VARIANT_ADD(call, name)
#define TRANSLATED(error, fate)	.translated = { true, error, fate }

/* Helpers */

static int result(long ret)
{
	if (ret >= 0)
		return 0;
	return errno == ENOSYS ? LACKING : -errno;
}

/* Do it in a child, which treats this process as another one. */
static int in_child(int (*run)(struct mapping *map, long arg), struct mapping *map,
		    long arg)
{
	int status;
	pid_t pid = fork();

	if (!pid)
		_exit(-run(map, arg));
	if (pid < 0 || waitpid(pid, &status, 0) != pid || !WIFEXITED(status))
		return -ECHILD;
	return -WEXITSTATUS(status);
}

static int open_proc(pid_t pid, const char *name, int flags)
{
	char path[64];

	snprintf(path, sizeof(path), "/proc/%d/%s", pid, name);
	return open(path, flags | O_CLOEXEC);
}

/* Read an open file to its end. */
static int read_all(int fd)
{
	char buf[PAGE_SIZE];
	ssize_t len;

	if (fd < 0)
		return errno == ENOENT ? LACKING : -errno;
	do
		len = read(fd, buf, sizeof(buf));
	while (len > 0);
	close(fd);
	return result(len);
}

static int write_string(const char *path, const char *string)
{
	int fd = open(path, O_WRONLY | O_CLOEXEC);
	int error;

	if (fd < 0)
		return errno == ENOENT ? LACKING : -errno;
	error = result(write(fd, string, strlen(string)));
	close(fd);
	return error;
}

static char *anonymous(size_t size)
{
	char *mem = mmap(NULL, size, RW, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);

	return mem == MAP_FAILED ? NULL : mem;
}

/* madvise() */

static int run_madvise(struct mapping *map, long advice)
{
	return result(madvise(map->mem, SIZE, advice));
}

/* A kernel that does not know an advice refuses it for any memory. */
static int run_madvise_if_known(struct mapping *map, long advice)
{
	char *other = anonymous(SIZE);

	if (madvise(other, SIZE, advice) && errno == EINVAL)
		return LACKING;
	return run_madvise(map, advice);
}

/* This needs privileges, and a kernel that deals with memory failures. */
static int run_madvise_poison(struct mapping *map, long advice)
{
	if (access("/proc/sys/vm/memory_failure_recovery", F_OK))
		return LACKING;
	return result(madvise(page(map->mem, 4), PAGE_SIZE, advice));
}

/* Where a child gets the mapping anyway, some kernels accept it. */
static int run_madvise_dofork(struct mapping *map, long arg)
{
	int error = run_madvise(map, MADV_DOFORK);

	return translated() && !error ? -EINVAL : error;
}

CALL(madvise_normal) { run_madvise, MADV_NORMAL, 0, KEPT };
CALL(madvise_random) { run_madvise, MADV_RANDOM, 0, KEPT };
CALL(madvise_sequential) { run_madvise, MADV_SEQUENTIAL, 0, KEPT };
CALL(madvise_willneed) { run_madvise, MADV_WILLNEED, 0, KEPT };
CALL(madvise_dontneed) { run_madvise, MADV_DONTNEED, 0, GONE };
CALL(madvise_dontneed_locked) { run_madvise_if_known, MADV_DONTNEED_LOCKED, 0, GONE };
CALL(madvise_free) { run_madvise, MADV_FREE, -EINVAL, KEPT };
CALL(madvise_remove) { run_madvise, MADV_REMOVE, -ENODEV, KEPT };
CALL(madvise_dontfork) { run_madvise, MADV_DONTFORK, 0, KEPT };
CALL(madvise_dofork) { run_madvise_dofork, 0, -EINVAL, KEPT };
CALL(madvise_mergeable) { run_madvise_if_known, MADV_MERGEABLE, 0, KEPT, "KSM" };
CALL(madvise_unmergeable) { run_madvise_if_known, MADV_UNMERGEABLE, 0, KEPT, "KSM" };
CALL(madvise_hugepage) { run_madvise_if_known, MADV_HUGEPAGE, 0, KEPT, "TRANSPARENT_HUGEPAGE" };
CALL(madvise_nohugepage) { run_madvise_if_known, MADV_NOHUGEPAGE, 0, KEPT, "TRANSPARENT_HUGEPAGE" };
CALL(madvise_collapse) { run_madvise, MADV_COLLAPSE, -EINVAL, KEPT };
CALL(madvise_dontdump) { run_madvise, MADV_DONTDUMP, 0, KEPT };
CALL(madvise_dodump) { run_madvise, MADV_DODUMP, -EINVAL, KEPT };
CALL(madvise_wipeonfork) { run_madvise, MADV_WIPEONFORK, -EINVAL, KEPT };
CALL(madvise_keeponfork) { run_madvise, MADV_KEEPONFORK, 0, KEPT };
CALL(madvise_cold) { run_madvise, MADV_COLD, 0, KEPT };
CALL(madvise_pageout) { run_madvise, MADV_PAGEOUT, 0, KEPT };
CALL(madvise_populate_read) { run_madvise_if_known, MADV_POPULATE_READ, 0, KEPT };
CALL(madvise_populate_write) { run_madvise_if_known, MADV_POPULATE_WRITE, 0, KEPT };
CALL(madvise_guard_install) { run_madvise, MADV_GUARD_INSTALL, -EINVAL, KEPT };
CALL(madvise_guard_remove) { run_madvise, MADV_GUARD_REMOVE, -EINVAL, KEPT };
CALL(madvise_hwpoison) { run_madvise_poison, MADV_HWPOISON, -EBUSY, KEPT, "MEMORY_FAILURE" };
CALL(madvise_soft_offline) { run_madvise_poison, MADV_SOFT_OFFLINE, -EIO, KEPT, "MEMORY_FAILURE" };
CALL(madvise_unknown) { run_madvise, INT_MAX, -EINVAL, KEPT };

static int run_process_madvise(struct mapping *map, long advice)
{
	struct iovec iov = { map->mem, SIZE };
	int pidfd = syscall(__NR_pidfd_open, getpid(), 0);
	long ret = syscall(__NR_process_madvise, pidfd, &iov, 1, advice, 0);

	return ret >= 0 && ret != SIZE ? -EIO : result(ret);
}

CALL(process_madvise_willneed) { run_process_madvise, MADV_WILLNEED, 0, KEPT };
CALL(process_madvise_cold) { run_process_madvise, MADV_COLD, 0, KEPT };
CALL(process_madvise_pageout) { run_process_madvise, MADV_PAGEOUT, 0, KEPT };
CALL(process_madvise_collapse) { run_process_madvise, MADV_COLLAPSE, -EINVAL, KEPT };

/* mlock() and its kin */

static int run_mlock(struct mapping *map, long flags)
{
	return result(syscall(__NR_mlock2, map->mem, SIZE, flags));
}

static int run_munlock(struct mapping *map, long arg)
{
	int error = run_mlock(map, 0);

	return error ?: result(munlock(map->mem, SIZE));
}

static int run_mlockall(struct mapping *map, long flags)
{
	return result(mlockall(flags));
}

static int run_munlockall(struct mapping *map, long arg)
{
	int error = result(mlockall(MCL_CURRENT));

	return error ?: result(munlockall());
}

CALL(mlock) { run_mlock, 0, 0, KEPT };
CALL(mlock_onfault) { run_mlock, MLOCK_ONFAULT, 0, KEPT };
CALL(munlock) { run_munlock, 0, 0, KEPT };
CALL(mlockall_current) { run_mlockall, MCL_CURRENT, 0, KEPT };
CALL(mlockall_future) { run_mlockall, MCL_CURRENT | MCL_FUTURE, 0, KEPT };
CALL(mlockall_onfault) { run_mlockall, MCL_CURRENT | MCL_ONFAULT, 0, KEPT };
CALL(munlockall) { run_munlockall, 0, 0, KEPT };

/* Protection */

static int run_mprotect(struct mapping *map, long prot)
{
	return result(mprotect(map->mem, SIZE, prot));
}

static int run_mprotect_part(struct mapping *map, long prot)
{
	return result(mprotect(page(map->mem, 3), 2 * PAGE_SIZE, prot));
}

static int run_pkey_mprotect(struct mapping *map, long prot)
{
	return result(syscall(__NR_pkey_mprotect, map->mem, SIZE, prot, -1));
}

static int run_pkey_mprotect_key(struct mapping *map, long prot)
{
	int key = syscall(__NR_pkey_alloc, 0, 0);

	/* The processor may have no protection keys. */
	if (key < 0)
		return LACKING;
	return result(syscall(__NR_pkey_mprotect, map->mem, SIZE, prot, key));
}

CALL(mprotect_same) { run_mprotect, RW, 0, KEPT };
CALL(mprotect_read) { run_mprotect, PROT_READ, -EACCES, KEPT, TRANSLATED(0, READABLE) };
CALL(mprotect_none) { run_mprotect, PROT_NONE, -EACCES, KEPT, TRANSLATED(0, HIDDEN) };
CALL(mprotect_exec) { run_mprotect, RW | PROT_EXEC, -EACCES, KEPT, TRANSLATED(0, KEPT) };
CALL(mprotect_part) { run_mprotect_part, PROT_READ, -EACCES, KEPT, TRANSLATED(0, READABLE) };
CALL(pkey_mprotect_same) { run_pkey_mprotect, RW, 0, KEPT };
CALL(pkey_mprotect_read) {
	run_pkey_mprotect, PROT_READ, -EACCES, KEPT,
	TRANSLATED(0, READABLE)
};

CALL(pkey_mprotect_key) {
	run_pkey_mprotect_key, RW, -EACCES, KEPT,
	"protection keys of the processor", TRANSLATED(0, KEPT)
};

/* Where it is */

struct remap {
	size_t old_size, new_size;
	int flags;
};

static const struct remap
	remap_same = { SIZE, SIZE, 0 },
	remap_same_may_move = { SIZE, SIZE, MREMAP_MAYMOVE },
	remap_fixed = { SIZE, SIZE, MREMAP_MAYMOVE | MREMAP_FIXED },
	remap_fixed_part = { 2 * PAGE_SIZE, 2 * PAGE_SIZE, MREMAP_MAYMOVE | MREMAP_FIXED },
	remap_dontunmap = { SIZE, SIZE, MREMAP_MAYMOVE | MREMAP_DONTUNMAP },
	remap_grow = { SIZE, 2 * SIZE, 0 },
	remap_grow_may_move = { SIZE, 2 * SIZE, MREMAP_MAYMOVE },
	remap_twice = { 0, SIZE, MREMAP_MAYMOVE },
	remap_shrink = { SIZE, SIZE / 2, 0 },
	remap_shrink_fixed = { SIZE, SIZE / 2, MREMAP_MAYMOVE | MREMAP_FIXED };

static int run_mremap(struct mapping *map, long arg)
{
	const struct remap *r = (void *)arg;
	char *target = anonymous(2 * SIZE);
	unsigned int i;
	void *ret;

	target[0] = 't';
	ret = mremap(map->mem, r->old_size, r->new_size, r->flags, target);
	if (ret == MAP_FAILED)
		return target[0] == 't' ? -errno : -EIO;
	if (ret == map->mem)
		return 0;

	/* It has moved: look, and move it back. */
	for (i = 0; i < r->old_size / PAGE_SIZE; i++)
		if (access_signal(page(map->mem, i)) != SIGSEGV)
			return -EIO;
	for (i = 0; i < r->new_size / PAGE_SIZE; i++)
		if (access_signal(page(ret, i)) || !page_holds(page(ret, i), i))
			return -EBADMSG;
	return mremap(ret, r->new_size, r->new_size, MREMAP_MAYMOVE | MREMAP_FIXED,
		      map->mem) == map->mem ? 0 : -errno;
}

CALL(mremap_same) { run_mremap, (long)&remap_same, 0, KEPT };
CALL(mremap_same_may_move) { run_mremap, (long)&remap_same_may_move, 0, KEPT };
CALL(mremap_fixed) { run_mremap, (long)&remap_fixed, -EINVAL, KEPT, TRANSLATED(0, KEPT) };
CALL(mremap_fixed_part) {
	run_mremap, (long)&remap_fixed_part, -EINVAL, KEPT,
	TRANSLATED(0, KEPT)
};

CALL(mremap_dontunmap) { run_mremap, (long)&remap_dontunmap, -EINVAL, KEPT };
/* VM_DONTEXPAND answers with EFAULT. */
CALL(mremap_grow) {
	run_mremap, (long)&remap_grow, -EINVAL, KEPT,
	TRANSLATED(-EFAULT, KEPT)
};

CALL(mremap_grow_may_move) {
	run_mremap, (long)&remap_grow_may_move, -EINVAL, KEPT,
	TRANSLATED(-EFAULT, KEPT)
};

CALL(mremap_twice) {
	run_mremap, (long)&remap_twice, -EINVAL, KEPT,
	TRANSLATED(-EFAULT, KEPT)
};

CALL(mremap_shrink) { run_mremap, (long)&remap_shrink, 0, HALF };
CALL(mremap_shrink_fixed) {
	run_mremap, (long)&remap_shrink_fixed, -EINVAL, KEPT,
	TRANSLATED(0, HALF)
};

static int run_remap_file_pages(struct mapping *map, long offset)
{
	return result(syscall(__NR_remap_file_pages, map->mem, SIZE, 0, offset, 0));
}

/* On PV it is refused at once, elsewhere when mmap() has unmapped what was there. */
CALL(remap_file_pages) {
	run_remap_file_pages, 0, -EINVAL, KEPT,
	TRANSLATED(-EINVAL, UNMAPPED)
};

CALL(remap_file_pages_elsewhere) {
	run_remap_file_pages, 1, -EINVAL, KEPT,
	TRANSLATED(-EINVAL, UNMAPPED)
};

static int run_munmap(struct mapping *map, long arg)
{
	return result(munmap(map->mem + SIZE / 2, SIZE / 2));
}

CALL(munmap_half) { run_munmap, 0, 0, HALF };

/* A sealed mapping stays as long as its process. */
static int seal(struct mapping *map, long arg)
{
	const grant_ref_t *ref = map->env->grants.ref + NR_PAGES;
	int fd = open("/dev/xen/gntdev", O_RDWR | O_CLOEXEC), error;
	char *mem = gntdev_map(fd, ref, NR_PAGES, RW);
	unsigned int i;

	if (mem == MAP_FAILED)
		return -errno;
	error = result(syscall(__NR_mseal, mem, SIZE, 0));
	if (error)
		return error;
	if (!munmap(mem, SIZE) || errno != EPERM)
		return -EIO;
	if (mremap(mem, SIZE, SIZE / 2, 0) != MAP_FAILED || errno != EPERM)
		return -EIO;
	for (i = 0; i < NR_PAGES; i++)
		if (access_signal(page(mem, i)) || !page_holds(page(mem, i), NR_PAGES + i))
			return -EBADMSG;
	return 0;
}

static int run_mseal(struct mapping *map, long arg)
{
	return in_child(seal, map, arg);
}

CALL(mseal) { run_mseal, 0, 0, KEPT, "Linux 6.10" };

/* Its data */

static int run_msync(struct mapping *map, long flags)
{
	return result(msync(map->mem, SIZE, flags));
}

CALL(msync_async) { run_msync, MS_ASYNC, 0, KEPT };
CALL(msync_invalidate) { run_msync, MS_INVALIDATE, 0, KEPT };
/* There is nowhere to write it to. */
CALL(msync_sync) { run_msync, MS_SYNC, -EINVAL, KEPT };

static int run_mincore(struct mapping *map, long arg)
{
	unsigned char there[NR_PAGES] = { };
	unsigned int i;
	int error = result(mincore(map->mem, SIZE, there));

	for (i = 0; !error && i < NR_PAGES; i++)
		if (!(there[i] & 1))
			error = -EIO;
	return error;
}

CALL(mincore) { run_mincore, 0, 0, KEPT };

static pid_t mapper;

static int copy_by_mem(struct mapping *map, long arg)
{
	int fd = open_proc(mapper, "mem", O_RDWR);
	char copy[PAGE_SIZE];

	if (fd < 0)
		return -errno;
	if (pread(fd, copy, PAGE_SIZE, (long)page(map->mem, 2)) != PAGE_SIZE)
		return -errno;
	if (!page_holds(copy, 2))
		return -EBADMSG;
	return pwrite(fd, copy, PAGE_SIZE, (long)page(map->mem, 2)) == PAGE_SIZE ? 0 : -errno;
}

static int copy_by_vm(struct mapping *map, long arg)
{
	char copy[PAGE_SIZE];
	struct iovec local = { copy, PAGE_SIZE };
	struct iovec remote = { page(map->mem, 2), PAGE_SIZE };
	long ret = syscall(__NR_process_vm_readv, mapper, &local, 1, &remote, 1, 0);

	if (ret != PAGE_SIZE)
		return result(ret) ?: -EIO;
	if (!page_holds(copy, 2))
		return -EBADMSG;
	ret = syscall(__NR_process_vm_writev, mapper, &local, 1, &remote, 1, 0);
	return ret == PAGE_SIZE ? 0 : -errno;
}

static int copy_by_ptrace(struct mapping *map, long arg)
{
	long *there = page(map->mem, 2), copy[PAGE_SIZE / sizeof(long)];
	int status, error = 0;
	long word;

	if (ptrace(PTRACE_ATTACH, mapper, 0, 0) ||
	    waitpid(mapper, &status, 0) != mapper)
		return -errno;
	errno = 0;
	word = ptrace(PTRACE_PEEKDATA, mapper, there, 0);
	if (errno || ptrace(PTRACE_POKEDATA, mapper, there, word))
		error = -errno;
	ptrace(PTRACE_DETACH, mapper, 0, 0);
	fill_page(copy, 2);
	if (!error && word != copy[0])
		error = -EBADMSG;
	return error;
}

static int run_self(struct mapping *map, long run)
{
	mapper = getpid();
	return ((int (*)(struct mapping *, long))run)(map, 0);
}

static int run_other(struct mapping *map, long run)
{
	mapper = getpid();
	return in_child((int (*)(struct mapping *, long))run, map, 0);
}

CALL(proc_mem) { run_self, (long)copy_by_mem, 0, KEPT };
CALL(proc_mem_of_another) { run_other, (long)copy_by_mem, 0, KEPT };
CALL(process_vm) { run_self, (long)copy_by_vm, 0, KEPT, "CROSS_MEMORY_ATTACH" };
CALL(process_vm_of_another) { run_other, (long)copy_by_vm, 0, KEPT, "CROSS_MEMORY_ATTACH" };
CALL(ptrace) { run_other, (long)copy_by_ptrace, 0, KEPT };

/* The page goes to a pipe. A file or another pipe gets it from there. */
static int run_vmsplice(struct mapping *map, long flags)
{
	struct iovec iov = { page(map->mem, 4), PAGE_SIZE };
	char copy[PAGE_SIZE];
	int fd[2], error;

	if (pipe(fd))
		return -errno;
	error = vmsplice(fd[1], &iov, 1, flags) != PAGE_SIZE ? -errno :
		!drain(fd, copy) || !page_holds(copy, 4) ? -EBADMSG : 0;
	close(fd[0]);
	close(fd[1]);
	return error;
}

static int run_tee(struct mapping *map, long arg)
{
	int from[2], to[2], error;
	char copy[PAGE_SIZE];

	if (pipe(from) || pipe(to))
		return -errno;
	error = !hold(from, page(map->mem, 4), 1) ||
		tee(from[0], to[1], PAGE_SIZE, 0) != PAGE_SIZE ? -errno :
		!drain(from, copy) || !page_holds(copy, 4) ||
		!drain(to, copy) || !page_holds(copy, 4) ? -EBADMSG : 0;
	close(from[0]);
	close(from[1]);
	close(to[0]);
	close(to[1]);
	return error;
}

static int run_splice(struct mapping *map, long flags)
{
	int file = memfd_create("gntdev_calls", MFD_CLOEXEC), fd[2], error;
	char copy[PAGE_SIZE];

	if (file < 0 || pipe(fd))
		return LACKING;
	error = !hold(fd, page(map->mem, 4), 1) ||
		splice(fd[0], NULL, file, NULL, PAGE_SIZE, flags) != PAGE_SIZE ? -errno :
		pread(file, copy, PAGE_SIZE, 0) != PAGE_SIZE ||
		!page_holds(copy, 4) ? -EBADMSG : 0;
	/* The file has a copy, not the page itself. */
	fill_page(copy, 444);
	if (!error && (pwrite(file, copy, PAGE_SIZE, 0) != PAGE_SIZE ||
		       !page_holds(page(map->mem, 4), 4)))
		error = -EBADMSG;
	close(fd[0]);
	close(fd[1]);
	close(file);
	return error;
}

CALL(vmsplice) { run_vmsplice, 0, 0, KEPT };
CALL(vmsplice_gift) { run_vmsplice, SPLICE_F_GIFT, 0, KEPT };
CALL(tee) { run_tee, 0, 0, KEPT };
CALL(splice) { run_splice, 0, 0, KEPT, "MEMFD_CREATE" };
CALL(splice_move) { run_splice, SPLICE_F_MOVE, 0, KEPT, "MEMFD_CREATE" };

/* The key of a futex that several processes share is that of a file's page. */
static int run_futex(struct mapping *map, long arg)
{
	return result(syscall(__NR_futex, map->mem, FUTEX_WAKE, 1, NULL, NULL, 0));
}

CALL(futex) { run_futex, 0, -EFAULT, KEPT };

/* Where its memory is */

static int run_move_pages(struct mapping *map, long move)
{
	void *pages[NR_PAGES];
	int nodes[NR_PAGES] = { }, status[NR_PAGES];
	unsigned int i;

	for (i = 0; i < NR_PAGES; i++)
		pages[i] = page(map->mem, i);
	return result(syscall(__NR_move_pages, 0, NR_PAGES, pages,
			      move ? nodes : NULL, status, MPOL_MF_MOVE_ALL));
}

static int run_mbind(struct mapping *map, long flags)
{
	unsigned long node = 1;

	return result(syscall(__NR_mbind, map->mem, SIZE, MPOL_BIND, &node,
			      sizeof(node) * 8, flags));
}

static int run_migrate_pages(struct mapping *map, long arg)
{
	unsigned long node = 1;

	return result(syscall(__NR_migrate_pages, 0, sizeof(node) * 8, &node, &node));
}

CALL(move_pages_query) { run_move_pages, false, 0, KEPT, "NUMA" };
CALL(move_pages) { run_move_pages, true, 0, KEPT, "NUMA" };
CALL(mbind) { run_mbind, 0, 0, KEPT, "NUMA" };
CALL(mbind_strict) { run_mbind, MPOL_MF_STRICT, 0, KEPT, "NUMA" };
CALL(mbind_move) { run_mbind, MPOL_MF_STRICT | MPOL_MF_MOVE, 0, KEPT, "NUMA" };
CALL(mbind_move_all) { run_mbind, MPOL_MF_STRICT | MPOL_MF_MOVE_ALL, 0, KEPT, "NUMA" };
CALL(migrate_pages) { run_migrate_pages, 0, 0, KEPT, "NUMA" };

/* userfaultfd */

static int uffd_open(__u64 features)
{
	struct uffdio_api api = { .api = UFFD_API, .features = features };
	int fd = syscall(__NR_userfaultfd, O_CLOEXEC | O_NONBLOCK);

	return fd < 0 || ioctl(fd, UFFDIO_API, &api) ? -1 : fd;
}

static int uffd_register(int fd, void *mem, __u64 mode)
{
	struct uffdio_register op = {
		.range = { (unsigned long)mem, SIZE }, .mode = mode,
	};

	return fd < 0 ? LACKING : result(ioctl(fd, UFFDIO_REGISTER, &op));
}

static int run_uffd_register(struct mapping *map, long mode)
{
	return uffd_register(uffd_open(0), map->mem, mode);
}

static int run_uffd_register_async(struct mapping *map, long arg)
{
	int fd = uffd_open(UFFD_FEATURE_WP_ASYNC | UFFD_FEATURE_WP_UNPOPULATED |
			   UFFD_FEATURE_WP_HUGETLBFS_SHMEM);

	return uffd_register(fd, map->mem, UFFDIO_REGISTER_MODE_WP);
}

static int run_uffd_writeprotect(struct mapping *map, long arg)
{
	struct uffdio_writeprotect op = {
		.range = { (unsigned long)map->mem, SIZE },
		.mode = UFFDIO_WRITEPROTECT_MODE_WP,
	};
	int fd = uffd_open(0);

	return fd < 0 ? LACKING : result(ioctl(fd, UFFDIO_WRITEPROTECT, &op));
}

/* Fill a range that is not registered: this mapping cannot be. */
static int run_uffd_zeropage(struct mapping *map, long arg)
{
	struct uffdio_zeropage op = { .range = { (unsigned long)map->mem, SIZE } };
	int fd = uffd_open(0);

	return fd < 0 ? LACKING : result(ioctl(fd, UFFDIO_ZEROPAGE, &op));
}

/* Move pages out of the mapping, to one that is registered. */
static int run_uffd_move(struct mapping *map, long arg)
{
	char *target = mmap(NULL, SIZE, RW, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	struct uffdio_move op = {
		.dst = (unsigned long)target, .src = (unsigned long)map->mem, .len = SIZE,
	};
	int fd = uffd_open(0);
	int error = uffd_register(fd, target, UFFDIO_REGISTER_MODE_MISSING);

	return error ?: result(ioctl(fd, UFFDIO_MOVE, &op));
}

CALL(uffd_missing) {
	run_uffd_register, UFFDIO_REGISTER_MODE_MISSING, -EINVAL, KEPT,
	"USERFAULTFD"
};

CALL(uffd_wp) { run_uffd_register, UFFDIO_REGISTER_MODE_WP, -EINVAL, KEPT, "USERFAULTFD" };
CALL(uffd_minor) { run_uffd_register, UFFDIO_REGISTER_MODE_MINOR, -EINVAL, KEPT, "USERFAULTFD" };
CALL(uffd_wp_async) { run_uffd_register_async, 0, -EINVAL, KEPT, "USERFAULTFD" };
CALL(uffd_writeprotect) { run_uffd_writeprotect, 0, -ENOENT, KEPT, "USERFAULTFD" };
CALL(uffd_zeropage) { run_uffd_zeropage, 0, -ENOENT, KEPT, "USERFAULTFD" };
CALL(uffd_move) { run_uffd_move, 0, -EINVAL, KEPT, "USERFAULTFD" };

/* /proc */

static int scan(struct mapping *map, long flags)
{
	struct page_region found[NR_PAGES];
	struct pm_scan_arg op = {
		.size = sizeof(op),
		.flags = flags,
		.start = (unsigned long)map->mem,
		.end = (unsigned long)map->mem + SIZE,
		.vec = (unsigned long)found,
		.vec_len = NR_PAGES,
		.category_mask = PAGE_IS_WRITTEN,
		.return_mask = PAGE_IS_WRITTEN,
	};
	int fd = open_proc(mapper, "pagemap", O_RDONLY);
	int error = result(ioctl(fd, PAGEMAP_SCAN, &op));

	close(fd);
	return error == -ENOTTY ? LACKING : error;
}

/* Without a vector the scan protects all pages, whatever they are. */
static int scan_without_vector(struct mapping *map, long arg)
{
	struct pm_scan_arg op = {
		.size = sizeof(op),
		.flags = PM_SCAN_WP_MATCHING,
		.start = (unsigned long)map->mem,
		.end = (unsigned long)map->mem + SIZE,
		.category_mask = PAGE_IS_WRITTEN,
	};
	int fd = open_proc(mapper, "pagemap", O_RDONLY);
	int error = result(ioctl(fd, PAGEMAP_SCAN, &op));

	close(fd);
	return error == -ENOTTY ? LACKING : error;
}

static int run_scan(struct mapping *map, long flags)
{
	mapper = getpid();
	return scan(map, flags);
}

static int run_scan_other(struct mapping *map, long flags)
{
	mapper = getpid();
	return in_child(scan, map, flags);
}

CALL(pagemap_scan) { run_scan, 0, 0, KEPT, "PROC_PAGE_MONITOR" };
CALL(pagemap_scan_check) { run_scan, PM_SCAN_CHECK_WPASYNC, -EPERM, KEPT, "PROC_PAGE_MONITOR" };
CALL(pagemap_scan_wp) { run_scan, PM_SCAN_WP_MATCHING, 0, KEPT, "PROC_PAGE_MONITOR" };
CALL(pagemap_scan_wp_check) {
	run_scan, PM_SCAN_WP_MATCHING | PM_SCAN_CHECK_WPASYNC, -EPERM, KEPT,
	"PROC_PAGE_MONITOR"
};

CALL(pagemap_scan_wp_without_vector) {
	run_self, (long)scan_without_vector, 0, KEPT,
	"PROC_PAGE_MONITOR"
};

CALL(pagemap_scan_wp_of_another) {
	run_scan_other, PM_SCAN_WP_MATCHING, 0, KEPT,
	"PROC_PAGE_MONITOR"
};

CALL(pagemap_scan_wp_check_of_another) {
	run_scan_other, PM_SCAN_WP_MATCHING | PM_SCAN_CHECK_WPASYNC, -EPERM, KEPT,
	"PROC_PAGE_MONITOR"
};

static int run_clear_refs(struct mapping *map, long what)
{
	int fd = open_proc(getpid(), "clear_refs", O_WRONLY), error;
	char digit = '0' + what;

	if (fd < 0)
		return LACKING;
	error = result(write(fd, &digit, 1));
	close(fd);
	return error;
}

CALL(clear_refs_all) { run_clear_refs, 1, 0, KEPT, "PROC_PAGE_MONITOR" };
CALL(clear_refs_anonymous) { run_clear_refs, 2, 0, KEPT, "PROC_PAGE_MONITOR" };
CALL(clear_refs_mapped) { run_clear_refs, 3, 0, KEPT, "PROC_PAGE_MONITOR" };
CALL(clear_refs_soft_dirty) { run_clear_refs, 4, 0, KEPT, "PROC_PAGE_MONITOR" };
CALL(clear_refs_peak) { run_clear_refs, 5, 0, KEPT, "PROC_PAGE_MONITOR" };

static int run_read(struct mapping *map, long name)
{
	return read_all(open_proc(getpid(), (char *)name, O_RDONLY));
}

CALL(proc_maps) { run_read, (long)"maps", 0, KEPT };
CALL(proc_smaps) { run_read, (long)"smaps", 0, KEPT, "PROC_PAGE_MONITOR" };
CALL(proc_smaps_rollup) { run_read, (long)"smaps_rollup", 0, KEPT, "PROC_PAGE_MONITOR" };
CALL(proc_numa_maps) { run_read, (long)"numa_maps", 0, KEPT, "NUMA" };

static int run_pagemap(struct mapping *map, long arg)
{
	int fd = open_proc(getpid(), "pagemap", O_RDONLY);
	__u64 entry[NR_PAGES];
	unsigned int i;

	if (fd < 0)
		return LACKING;
	if (pread(fd, entry, sizeof(entry), (long)map->mem / PAGE_SIZE * 8) != sizeof(entry))
		return -errno;
	close(fd);
	for (i = 0; i < NR_PAGES; i++)
		if (!(entry[i] >> 63))
			return -EIO;
	return 0;
}

CALL(proc_pagemap) { run_pagemap, 0, 0, KEPT, "PROC_PAGE_MONITOR" };

/* Other processes */

static int look_for_it(struct mapping *map, long arg)
{
	return access_signal(map->mem) == (translated() ? 0 : SIGSEGV) ? 0 : -EIO;
}

static int run_fork(struct mapping *map, long arg)
{
	return in_child(look_for_it, map, 0);
}

CALL(fork) { run_fork, 0, 0, KEPT };

static int run_vfork(struct mapping *map, long exec)
{
	static char *const nothing[] = { NULL };
	int status;
	pid_t pid;

	if (exec && access("/bin/true", X_OK))
		return LACKING;
	pid = vfork();
	if (!pid) {
		if (exec)
			execle("/bin/true", "true", NULL, nothing);
		_exit(exec ? 1 : 0);
	}
	if (pid < 0 || waitpid(pid, &status, 0) != pid)
		return -errno;
	return status ? -EIO : 0;
}

CALL(vfork) { run_vfork, false, 0, KEPT };
CALL(vfork_and_exec) { run_vfork, true, 0, KEPT, "/bin/true" };

/* A process with a mapping of its own that ends in some way */
enum end { BY_EXEC, BY_CORE_DUMP };

static int map_and_end(struct mapping *map, long how)
{
	int fd = open("/dev/xen/gntdev", O_RDWR | O_CLOEXEC);
	struct rlimit core = { RLIM_INFINITY, RLIM_INFINITY };
	char *mem = gntdev_map(fd, map->env->grants.ref + NR_PAGES, NR_PAGES, RW);

	if (mem == MAP_FAILED || !page_holds(mem, NR_PAGES))
		return -EIO;
	if (how == BY_EXEC) {
		execl("/bin/true", "true", NULL);
		return LACKING;
	}
	setrlimit(RLIMIT_CORE, &core);
	if (chdir("/tmp"))
		return -errno;
	signal(SIGQUIT, SIG_DFL);
	raise(SIGQUIT);
	return -EIO;
}

static int run_end(struct mapping *map, long how)
{
	const grant_ref_t *ref = map->env->grants.ref + NR_PAGES;
	int status;
	unsigned int i;
	char name[32];
	pid_t pid = fork();

	if (!pid)
		_exit(-map_and_end(map, how));
	if (pid < 0 || waitpid(pid, &status, 0) != pid)
		return -errno;
	snprintf(name, sizeof(name), "/tmp/core.%d", pid);
	unlink(name);
	unlink("/tmp/core");
	for (i = 0; i < NR_PAGES; i++)
		if (!wait_for(!grant_mapped(&map->env->table, ref[i])))
			return -EBUSY;
	if (how == BY_EXEC)
		return WIFEXITED(status) ? -WEXITSTATUS(status) : -EIO;
	if (!WIFSIGNALED(status) || WTERMSIG(status) != SIGQUIT)
		return -EIO;
	return WCOREDUMP(status) ? 0 : LACKING;
}

CALL(exec) { run_end, BY_EXEC, 0, KEPT, "/bin/true" };
CALL(core_dump) { run_end, BY_CORE_DUMP, 0, KEPT, "COREDUMP" };

/* What the kernel does on its own */

static int run_write(struct mapping *map, long path)
{
	return write_string((char *)path, "1");
}

CALL(compact_memory) { run_write, (long)"/proc/sys/vm/compact_memory", 0, KEPT, "COMPACTION" };
CALL(drop_caches) { run_write, (long)"/proc/sys/vm/drop_caches", 0, KEPT };

#define KSM "/sys/kernel/mm/ksm/"

static int run_ksm(struct mapping *map, long arg)
{
	long scans = read_number(KSM "full_scans");
	bool scanned;

	if (scans < 0 || prctl(PR_SET_MEMORY_MERGE, 1, 0, 0, 0))
		return LACKING;
	write_number(KSM "sleep_millisecs", 0);
	write_number(KSM "pages_to_scan", 100000);
	write_number(KSM "run", 1);
	scanned = wait_for(read_number(KSM "full_scans") >= scans + 2);
	write_number(KSM "run", 2);
	prctl(PR_SET_MEMORY_MERGE, 0, 0, 0, 0);
	return scanned ? 0 : -ETIMEDOUT;
}

CALL(ksm) { run_ksm, 0, 0, KEPT, "KSM" };

#define NUMA_BALANCING "/proc/sys/kernel/numa_balancing"

/* How often NUMA balancing has looked at all memory of this process, or -1 */
static long numa_scans(void)
{
	FILE *file = fopen("/proc/self/sched", "r");
	char line[128];
	long scans = -1;

	while (file && scans < 0 && fgets(line, sizeof(line), file))
		sscanf(line, "mm->numa_scan_seq : %ld", &scans);
	if (file)
		fclose(file);
	return scans;
}

/* NUMA balancing works in the process itself, while that uses a CPU. */
static int run_numa_balancing(struct mapping *map, long arg)
{
	long before = read_number(NUMA_BALANCING), scans = numa_scans();
	__u64 deadline = now_ms() + 6 * WAIT_MS;
	bool scanned;

	if (before < 0 || scans < 0 || write_number(NUMA_BALANCING, 1))
		return LACKING;
	do
		scanned = numa_scans() >= scans + 2;
	while (!scanned && now_ms() < deadline);
	write_number(NUMA_BALANCING, before);
	return scanned ? 0 : -ETIMEDOUT;
}

CALL(numa_balancing) { run_numa_balancing, 0, 0, KEPT, "NUMA_BALANCING and SCHED_DEBUG" };

#define LRU_GEN "/sys/kernel/debug/lru_gen"

/* Make the generations of all memory older, by a walk over its page tables. */
static int run_lru_gen(struct mapping *map, long arg)
{
	FILE *file = fopen(LRU_GEN, "r");
	int memcg = -1, node = -1, error = LACKING;
	unsigned long gen, youngest = 0;
	char line[256], command[64];

	while (file && fgets(line, sizeof(line), file)) {
		if (sscanf(line, "memcg %d", &memcg) == 1 ||
		    sscanf(line, " node %d", &node) == 1)
			youngest = 0;
		else if (sscanf(line, " %lu", &gen) == 1)
			youngest = gen;
		if (memcg < 0 || node < 0 || youngest < 3)
			continue;
		snprintf(command, sizeof(command), "+ %d %d %lu 1 1", memcg, node, youngest);
		/* The kernel refuses a generation that is not the youngest. */
		if (!write_string(LRU_GEN, command))
			error = 0;
	}
	if (file)
		fclose(file);
	return error;
}

CALL(lru_gen) { run_lru_gen, 0, 0, KEPT, "LRU_GEN" };

#define KDAMONDS	"/sys/kernel/mm/damon/admin/kdamonds/"
#define DAMON_CONTEXT	KDAMONDS "0/contexts/0/"
#define DAMON_SCHEME	DAMON_CONTEXT "schemes/0/"

/* Look at all memory of this process, and reclaim what can be reclaimed. */
static int run_damon(struct mapping *map, long arg)
{
	char pid[16];
	bool tried;

	if (write_string(KDAMONDS "nr_kdamonds", "1"))
		return LACKING;
	snprintf(pid, sizeof(pid), "%d", getpid());
	if (write_string(KDAMONDS "0/contexts/nr_contexts", "1") ||
	    write_string(DAMON_CONTEXT "operations", "vaddr") ||
	    write_string(DAMON_CONTEXT "targets/nr_targets", "1") ||
	    write_string(DAMON_CONTEXT "targets/0/pid_target", pid) ||
	    write_string(DAMON_CONTEXT "monitoring_attrs/intervals/sample_us", "1000") ||
	    write_string(DAMON_CONTEXT "monitoring_attrs/intervals/aggr_us", "5000") ||
	    write_string(DAMON_CONTEXT "schemes/nr_schemes", "1") ||
	    write_string(DAMON_SCHEME "action", "pageout") ||
	    write_string(DAMON_SCHEME "access_pattern/sz/max", "18446744073709551615") ||
	    write_string(DAMON_SCHEME "access_pattern/nr_accesses/max", "1000") ||
	    write_string(DAMON_SCHEME "access_pattern/age/max", "1000000") ||
	    write_string(KDAMONDS "0/state", "on"))
		return -EIO;
	tried = wait_for(!write_string(KDAMONDS "0/state", "update_schemes_stats") &&
			 read_number(DAMON_SCHEME "stats/nr_tried") > 0);
	write_string(KDAMONDS "0/state", "off");
	return tried ? 0 : -ETIMEDOUT;
}

CALL(damon) { run_damon, 0, 0, KEPT, "DAMON_SYSFS and DAMON_VADDR" };

static int reclaim_in(const char *group)
{
	char path[128], pid[16];
	int error;

	snprintf(pid, sizeof(pid), "%d", getpid());
	snprintf(path, sizeof(path), "%s/cgroup.procs", group);
	error = write_string(path, pid);
	if (error)
		return error;
	/* Have something to reclaim. */
	if (!anonymous(256 * PAGE_SIZE))
		return -ENOMEM;
	snprintf(path, sizeof(path), "%s/memory.reclaim", group);
	error = write_string(path, "1M");
	/* -EAGAIN: all memory was tried, which is enough. */
	return error == -EAGAIN ? 0 : error;
}

static int run_cgroup_reclaim(struct mapping *map, long arg)
{
	char root[] = "/tmp/gntdev_calls.XXXXXX", path[128], pid[16];
	int error;

	if (!mkdtemp(root))
		return -errno;
	if (syscall(__NR_mount, "none", root, "cgroup2", 0, NULL)) {
		rmdir(root);
		return LACKING;
	}
	snprintf(path, sizeof(path), "%s/cgroup.subtree_control", root);
	error = write_string(path, "+memory") ? LACKING : 0;
	snprintf(path, sizeof(path), "%s/gntdev", root);
	if (!error)
		error = mkdir(path, 0700) ? -errno : reclaim_in(path);
	snprintf(pid, sizeof(pid), "%d", getpid());
	snprintf(path, sizeof(path), "%s/cgroup.procs", root);
	write_string(path, pid);
	snprintf(path, sizeof(path), "%s/gntdev", root);
	rmdir(path);
	syscall(__NR_umount2, root, 0);
	rmdir(root);
	return error;
}

CALL(cgroup_reclaim) { run_cgroup_reclaim, 0, 0, KEPT, "MEMCG" };

TEST_HARNESS_MAIN
