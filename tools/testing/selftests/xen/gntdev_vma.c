// SPDX-License-Identifier: GPL-2.0
/*
 * A process can unmap parts of memory that is mapped from grants, but it cannot
 * expand the memory. On PV it cannot move the memory or change its protection, either,
 * because only the hypervisor can change the PTEs. Whatever is refused is refused
 * before anything is unmapped.
 *
 * Where addresses are translated the PTEs are normal ones, and only the end of the
 * whole mapping unmaps grants.
 */
#include <stdint.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <linux/fs.h>

#include "xen_grant.h"

#define RW	(PROT_READ | PROT_WRITE)

FIXTURE(gntdev_vma)
{
	struct xen_env env;
	struct grants *grants;
	grant_ref_t *ref;
	char *mem;
	int pipe[2];
	char copy[PAGE_SIZE];
};

FIXTURE_SETUP(gntdev_vma)
{
	xen_env_setup(_metadata, &self->env);
	if (_metadata->exit_code)
		return;
	self->grants = &self->env.grants;
	self->ref = self->env.grants.ref;
	self->mem = gntdev_map(self->env.gntdev, self->ref, MAX_GRANTS, RW);
	ASSERT_NE(MAP_FAILED, self->mem);
	ASSERT_EQ(0, pipe(self->pipe));
}

FIXTURE_TEARDOWN(gntdev_vma)
{
	close(self->pipe[0]);
	close(self->pipe[1]);
	munmap(self->mem, MAX_GRANTS * PAGE_SIZE);
	xen_env_teardown(_metadata, &self->env);
}

#define SIZE		(MAX_GRANTS * PAGE_SIZE)
#define mapped(i)	grant_mapped(&self->env.table, self->ref[i])
#define granted(i)	page(self->grants->mem, i)
#define at(i)		((char *)page(self->mem, i))

#define EXPECT_ERRNO(error, call)	\
do {					\
	errno = 0;			\
	EXPECT_EQ(-1, (long)(call));	\
	EXPECT_EQ(error, errno);	\
} while (0)

#define shared(first, count)	pages_shared(&self->env, self->mem, first, count)

/* A part of the mapping is gone: on PV that unmaps its grants, elsewhere it does not. */
static bool is_part_unmapped(const struct xen_env *env, unsigned int i)
{
	grant_ref_t ref = env->grants.ref[i];

	return translated() ? grant_mapped(&env->table, ref) :
			      wait_for(!grant_mapped(&env->table, ref));
}

#define part_unmapped(i)	is_part_unmapped(&self->env, i)

/* Refused */

TEST_F(gntdev_vma, mprotect_unmaps_nothing)
{
	if (translated()) {
		EXPECT_EQ(0, mprotect(self->mem, SIZE, PROT_READ));
		EXPECT_EQ(0, access_signal(at(8)));
		EXPECT_EQ(0, mprotect(at(8), PAGE_SIZE, PROT_NONE));
		EXPECT_EQ(SIGSEGV, access_signal(at(8)));
		EXPECT_FALSE(hold(self->pipe, at(8), 1));
		EXPECT_TRUE(mapped(8));
		EXPECT_EQ(0, mprotect(self->mem, SIZE, RW));
		EXPECT_TRUE(shared(0, MAX_GRANTS));
		return;
	}
	EXPECT_ERRNO(EACCES, mprotect(self->mem, SIZE, PROT_READ));
	EXPECT_TRUE(shared(0, MAX_GRANTS));
	EXPECT_ERRNO(EACCES, mprotect(at(8), PAGE_SIZE, PROT_NONE));
	EXPECT_ERRNO(EACCES, mprotect(at(8), PAGE_SIZE, RW | PROT_EXEC));
	EXPECT_TRUE(shared(0, MAX_GRANTS));
}

TEST_F(gntdev_vma, mprotect_to_the_same_protection_changes_nothing)
{
	EXPECT_EQ(0, mprotect(self->mem, SIZE, RW));
	EXPECT_EQ(0, mprotect(at(3), PAGE_SIZE, RW));
	EXPECT_TRUE(shared(0, MAX_GRANTS));
}

TEST_F(gntdev_vma, mprotect_cannot_make_a_read_only_mapping_writable)
{
	char *mem;

	mem = gntdev_map(self->env.gntdev, self->ref, 2, PROT_READ);
	ASSERT_NE(MAP_FAILED, mem);
	EXPECT_ERRNO(EACCES, mprotect(mem, 2 * PAGE_SIZE, RW));
	EXPECT_EQ(0, access_signal(mem));
	EXPECT_TRUE(page_holds(page(mem, 1), 1));
	EXPECT_EQ(0, munmap(mem, 2 * PAGE_SIZE));
}

/* On PV the target keeps its data, and the mapping stays where it is. */
TEST_F(gntdev_vma, mremap_that_moves_unmaps_nothing)
{
	char *target = mmap(NULL, SIZE, RW, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	ASSERT_NE(MAP_FAILED, target);
	if (translated()) {
		EXPECT_ERRNO(EINVAL, mremap(self->mem, SIZE, SIZE,
					    MREMAP_MAYMOVE | MREMAP_DONTUNMAP, NULL));
		ASSERT_EQ(page(target, 4), mremap(at(4), 2 * PAGE_SIZE, 2 * PAGE_SIZE,
						  MREMAP_MAYMOVE | MREMAP_FIXED,
						  page(target, 4)));
		EXPECT_EQ(SIGSEGV, access_signal(at(5)));
		EXPECT_TRUE(shared(0, 4));
		EXPECT_TRUE(shared(6, MAX_GRANTS - 6));
		EXPECT_TRUE(pages_shared(&self->env, target, 4, 2));
		ASSERT_TRUE(hold(self->pipe, page(target, 5), 1));
		ASSERT_TRUE(drain(self->pipe, self->copy));
		EXPECT_TRUE(page_holds(self->copy, 5));
		/* What is left where it was goes first. */
		EXPECT_EQ(0, munmap(self->mem, SIZE));
		EXPECT_TRUE(pages_shared(&self->env, target, 4, 2));
		EXPECT_TRUE(mapped(0));
		EXPECT_EQ(0, munmap(target, SIZE));
		EXPECT_TRUE(wait_for(!mapped(0) && !mapped(4)));
		return;
	}
	fill_page(target, 1234);
	EXPECT_ERRNO(EINVAL, mremap(self->mem, SIZE, SIZE,
				    MREMAP_MAYMOVE | MREMAP_FIXED, target));
	EXPECT_ERRNO(EINVAL, mremap(at(4), 2 * PAGE_SIZE, PAGE_SIZE,
				    MREMAP_MAYMOVE | MREMAP_FIXED, target));
	EXPECT_ERRNO(EINVAL, mremap(self->mem, SIZE, SIZE,
				    MREMAP_MAYMOVE | MREMAP_DONTUNMAP, NULL));
	EXPECT_EQ(0, access_signal(target));
	EXPECT_TRUE(page_holds(target, 1234));
	EXPECT_TRUE(shared(0, MAX_GRANTS));
	EXPECT_EQ(0, munmap(target, SIZE));
}

/*
 * Since Linux 6.17 a range of several VMAs can be moved, one VMA after the other.
 * Those before the one that cannot be moved have been moved then.
 */
TEST_F(gntdev_vma, mremap_of_several_vmas_unmaps_nothing)
{
	char *before = mmap(self->mem - PAGE_SIZE, PAGE_SIZE, RW,
			    MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
	char *target = mmap(NULL, PAGE_SIZE + SIZE, RW, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	char *moved;
	int error;

	ASSERT_EQ(self->mem - PAGE_SIZE, before);
	ASSERT_NE(MAP_FAILED, target);
	fill_page(before, 1234);
	moved = mremap(before, PAGE_SIZE + SIZE, PAGE_SIZE + SIZE,
		       MREMAP_MAYMOVE | MREMAP_FIXED, target);
	error = errno;
	/* The latter on a kernel that moves one VMA at a time. */
	if (moved == MAP_FAILED)
		EXPECT_TRUE(error == EINVAL || error == EFAULT);
	EXPECT_TRUE(page_holds(access_signal(before) ? target : before, 1234));
	if (moved == MAP_FAILED) {
		EXPECT_TRUE(shared(0, MAX_GRANTS));
	} else {
		EXPECT_TRUE(translated());
		EXPECT_TRUE(pages_shared(&self->env, page(target, 1), 0, MAX_GRANTS));
	}
	munmap(before, PAGE_SIZE);
	EXPECT_EQ(0, munmap(target, PAGE_SIZE + SIZE));
}

TEST_F(gntdev_vma, mremap_that_expands_is_refused_and_unmaps_nothing)
{
	/* EFAULT is the answer of VM_DONTEXPAND. */
	const int error = translated() ? EFAULT : EINVAL;

	EXPECT_ERRNO(error, mremap(self->mem, SIZE, SIZE + PAGE_SIZE, 0));
	EXPECT_ERRNO(error, mremap(self->mem, SIZE, 2 * SIZE, MREMAP_MAYMOVE));
	EXPECT_ERRNO(error, mremap(at(1), PAGE_SIZE, 2 * PAGE_SIZE, MREMAP_MAYMOVE));
	/* This would map the same memory a second time. */
	EXPECT_ERRNO(error, mremap(self->mem, 0, SIZE, MREMAP_MAYMOVE));
	EXPECT_TRUE(shared(0, MAX_GRANTS));
}

/*
 * This would call mmap() of the same file again, which a map of grants cannot have.
 * On PV it is refused before that, elsewhere when mmap() has taken the PTEs away.
 */
TEST_F(gntdev_vma, remap_file_pages_is_refused_and_unmaps_nothing)
{
	EXPECT_ERRNO(EINVAL, syscall(__NR_remap_file_pages, at(8), PAGE_SIZE, 0, 9, 0));
	if (translated()) {
		EXPECT_EQ(SIGSEGV, access_signal(at(8)));
		EXPECT_TRUE(mapped(8));
		EXPECT_TRUE(shared(0, 8));
		EXPECT_TRUE(shared(9, MAX_GRANTS - 9));
		return;
	}
	EXPECT_TRUE(shared(0, MAX_GRANTS));
	EXPECT_ERRNO(EINVAL, syscall(__NR_remap_file_pages, self->mem, SIZE, 0, 0, 0));
	EXPECT_TRUE(shared(0, MAX_GRANTS));
}

/* Unmapping parts */

TEST_F(gntdev_vma, mremap_that_shrinks_unmaps_the_rest)
{
	EXPECT_EQ(self->mem, mremap(self->mem, SIZE, 10 * PAGE_SIZE, 0));
	EXPECT_TRUE(shared(0, 10));
	EXPECT_TRUE(part_unmapped(10));
	EXPECT_TRUE(part_unmapped(MAX_GRANTS - 1));
	EXPECT_EQ(SIGSEGV, access_signal(at(10)));
	ASSERT_EQ(0, munmap(self->mem, 10 * PAGE_SIZE));
	EXPECT_TRUE(wait_for(!mapped(0) && !mapped(10)));
}

/* Each address still leads to the page that belongs there, for I/O as well. */
TEST_F(gntdev_vma, parts_of_a_split_mapping_have_their_pages)
{
	static const unsigned int gone[] = { 40, 7, 8, 20, 63 };
	unsigned int i, j;

	for (i = 0; i < ARRAY_SIZE(gone); i++)
		ASSERT_EQ(0, munmap(at(gone[i]), PAGE_SIZE));
	for (i = 0; i < MAX_GRANTS; i++) {
		for (j = 0; j < ARRAY_SIZE(gone); j++)
			if (gone[j] == i)
				break;
		if (j < ARRAY_SIZE(gone)) {
			EXPECT_TRUE(part_unmapped(i));
			EXPECT_EQ(SIGSEGV, access_signal(at(i)));
			continue;
		}
		EXPECT_TRUE(shared(i, 1));
		ASSERT_TRUE(hold(self->pipe, at(i), 1));
		ASSERT_TRUE(drain(self->pipe, self->copy));
		EXPECT_TRUE(page_holds(self->copy, i));
	}
}

/* Looking up many pages at once */

#define PMD_SIZE	(512 * PAGE_SIZE)

/* Returns how many bytes of @mem could be read, -1, or -2 if they are wrong. */
static ssize_t look_up(char *mem, unsigned int first, unsigned int count)
{
	static char copy[MAX_GRANTS * PAGE_SIZE];
	struct iovec local = { copy, count * PAGE_SIZE };
	struct iovec remote = { page(mem, first), count * PAGE_SIZE };
	ssize_t len = process_vm_readv(getpid(), &local, 1, &remote, 1, 0);
	unsigned int i;

	for (i = 0; len > 0 && i < len / PAGE_SIZE; i++)
		if (!page_holds(page(copy, i), first + i))
			return -2;
	return len;
}

static bool can_look_up(void)
{
	char byte;
	struct iovec iov = { &byte, 1 };

	return process_vm_readv(getpid(), &iov, 1, &iov, 1, 0) == 1;
}

TEST_F(gntdev_vma, look_up_ends_where_a_page_is_gone)
{
	if (!can_look_up())
		SKIP(return, "process_vm_readv(): %s", strerror(errno));
	EXPECT_EQ(SIZE, look_up(self->mem, 0, MAX_GRANTS));
	ASSERT_EQ(0, madvise(at(5), PAGE_SIZE, MADV_DONTNEED));
	EXPECT_EQ(5 * PAGE_SIZE, look_up(self->mem, 0, MAX_GRANTS));
	EXPECT_ERRNO(EFAULT, look_up(self->mem, 5, 1));
	EXPECT_EQ(58 * PAGE_SIZE, look_up(self->mem, 6, 58));

	ASSERT_EQ(0, munmap(at(20), PAGE_SIZE));
	EXPECT_EQ(14 * PAGE_SIZE, look_up(self->mem, 6, 58));
	EXPECT_EQ(43 * PAGE_SIZE, look_up(self->mem, 21, 43));
}

TEST_F(gntdev_vma, look_up_goes_on_behind_the_mapping)
{
	unsigned int i;
	char *mem;

	if (!can_look_up())
		SKIP(return, "process_vm_readv(): %s", strerror(errno));
	/* Anonymous memory, two mappings of grants, anonymous memory */
	mem = mmap(NULL, 40 * PAGE_SIZE, RW, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	ASSERT_NE(MAP_FAILED, mem);
	for (i = 0; i < 40; i++)
		fill_page(page(mem, i), i);
	for (i = 10; i < 30; i += 10) {
		__s64 index = gntdev_add(self->env.gntdev, granter_domid(), self->ref + i, 10);

		ASSERT_LE(0, index);
		ASSERT_EQ(page(mem, i), mmap(page(mem, i), 10 * PAGE_SIZE, RW,
					     MAP_SHARED | MAP_FIXED,
					     self->env.gntdev, index));
	}
	EXPECT_EQ(40 * PAGE_SIZE, look_up(mem, 0, 40));
	EXPECT_EQ(20 * PAGE_SIZE, look_up(mem, 15, 20));
	ASSERT_EQ(0, munmap(mem, 40 * PAGE_SIZE));
}

TEST_F(gntdev_vma, look_up_goes_on_in_the_next_page_table)
{
	char *area, *mem;
	__s64 index;

	if (!can_look_up())
		SKIP(return, "process_vm_readv(): %s", strerror(errno));
	area = mmap(NULL, 2 * PMD_SIZE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	ASSERT_NE(MAP_FAILED, area);
	mem = (char *)(((uintptr_t)area + PMD_SIZE) & ~(PMD_SIZE - 1)) - 7 * PAGE_SIZE;
	if (mem < area)
		mem += PMD_SIZE;
	index = gntdev_add(self->env.gntdev, granter_domid(), self->ref, 16);
	ASSERT_LE(0, index);
	ASSERT_EQ(mem, mmap(mem, 16 * PAGE_SIZE, RW, MAP_SHARED | MAP_FIXED,
			    self->env.gntdev, index));
	EXPECT_TRUE(pages_shared(&self->env, mem, 0, 16));
	EXPECT_EQ(16 * PAGE_SIZE, look_up(mem, 0, 16));
	ASSERT_EQ(0, munmap(area, 2 * PMD_SIZE));
}

TEST_F(gntdev_vma, look_up_to_write_reaches_every_page)
{
	static char data[MAX_GRANTS * PAGE_SIZE];
	struct iovec local = { data, SIZE }, remote = { self->mem, SIZE };
	unsigned int i;

	if (!can_look_up())
		SKIP(return, "process_vm_readv(): %s", strerror(errno));
	for (i = 0; i < MAX_GRANTS; i++)
		fill_page(page(data, i), 300 + i);
	EXPECT_EQ(SIZE, process_vm_writev(getpid(), &local, 1, &remote, 1, 0));
	for (i = 0; i < MAX_GRANTS; i++)
		EXPECT_TRUE(page_holds(granted(i), 300 + i));
}

/* The VMA says so, before its pages are looked at. */
TEST_F(gntdev_vma, look_up_to_write_is_refused_where_a_mapping_is_read_only)
{
	struct iovec local = { self->copy, PAGE_SIZE }, remote = { NULL, PAGE_SIZE };
	char *mem;

	if (!can_look_up())
		SKIP(return, "process_vm_readv(): %s", strerror(errno));
	mem = gntdev_map(self->env.gntdev, self->ref, 2, PROT_READ);
	ASSERT_NE(MAP_FAILED, mem);
	remote.iov_base = mem;
	EXPECT_EQ(PAGE_SIZE, process_vm_readv(getpid(), &local, 1, &remote, 1, 0));
	EXPECT_TRUE(page_holds(self->copy, 0));
	memset(self->copy, 0, PAGE_SIZE);
	EXPECT_ERRNO(EFAULT, process_vm_writev(getpid(), &local, 1, &remote, 1, 0));
	EXPECT_TRUE(page_holds(granted(0), 0));
	ASSERT_EQ(0, munmap(mem, 2 * PAGE_SIZE));
}

TEST_F(gntdev_vma, dontneed_unmaps_and_the_rest_stays)
{
	ASSERT_EQ(0, madvise(at(5), 2 * PAGE_SIZE, MADV_DONTNEED));
	EXPECT_TRUE(part_unmapped(5));
	EXPECT_TRUE(part_unmapped(6));
	/* Nothing brings the PTEs back. */
	EXPECT_EQ(SIGBUS, access_signal(at(5)));
	EXPECT_EQ(SIGBUS, access_signal(at(6)));
	/* The kernel does not find a page there, either. */
	EXPECT_FALSE(hold(self->pipe, at(5), 1));
	EXPECT_TRUE(shared(0, 5));
	EXPECT_TRUE(shared(7, MAX_GRANTS - 7));
}

TEST_F(gntdev_vma, another_mapping_takes_the_place_of_a_part)
{
	char *other = mmap(at(30), 2 * PAGE_SIZE, RW,
			   MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);

	ASSERT_EQ(at(30), other);
	EXPECT_TRUE(part_unmapped(30));
	EXPECT_TRUE(part_unmapped(31));
	EXPECT_EQ(0, other[0]);
	fill_page(other, 4321);
	EXPECT_TRUE(page_holds(granted(30), 30));
	EXPECT_TRUE(shared(0, 30));
	EXPECT_TRUE(shared(32, MAX_GRANTS - 32));
}

/* What leaves the mapping alone */

TEST_F(gntdev_vma, mlock_and_munlock_leave_the_mapping)
{
	EXPECT_EQ(0, mlock(self->mem, SIZE));
	EXPECT_TRUE(shared(0, MAX_GRANTS));
	EXPECT_EQ(0, munlock(self->mem, SIZE));
	EXPECT_TRUE(shared(0, MAX_GRANTS));
}

/* A child's access to @mem ends in signal @expected, or in none. */
static void fork_and_look(struct __test_metadata *_metadata, const char *mem, int expected)
{
	pid_t pid = fork();
	int status;

	ASSERT_LE(0, pid);
	if (!pid)
		_exit(access_signal(mem));
	ASSERT_EQ(pid, waitpid(pid, &status, 0));
	EXPECT_TRUE(WIFEXITED(status));
	EXPECT_EQ(expected, WEXITSTATUS(status));
}

/* On PV the child cannot have the mapping: the hypervisor would refuse its PTEs. */
TEST_F(gntdev_vma, child_gets_the_mapping_only_if_its_ptes_are_normal)
{
	fork_and_look(_metadata, self->mem, translated() ? 0 : SIGSEGV);
	EXPECT_TRUE(shared(0, MAX_GRANTS));
}

/* The grants stay as long as the parent or the child has the mapping. */
TEST_F(gntdev_vma, child_keeps_the_mapping_that_it_gets)
{
	int to_child[2];
	char byte = 0;
	int status;
	pid_t pid;

	ASSERT_EQ(0, pipe(to_child));
	pid = fork();
	ASSERT_LE(0, pid);
	if (!pid) {
		close(to_child[1]);
		if (read(to_child[0], &byte, 1))
			_exit(1);
		if (!translated())
			_exit(access_signal(at(2)) == SIGSEGV ? 0 : 2);
		if (access_signal(at(2)) || !page_holds(at(2), 200))
			_exit(3);
		fill_page(at(2), 201);
		_exit(0);
	}
	close(to_child[0]);
	ASSERT_EQ(0, munmap(self->mem, SIZE));
	EXPECT_EQ(translated(), mapped(2));
	fill_page(granted(2), 200);
	close(to_child[1]);
	ASSERT_EQ(pid, waitpid(pid, &status, 0));
	EXPECT_EQ(0, status);
	EXPECT_TRUE(page_holds(granted(2), translated() ? 201 : 200));
	EXPECT_TRUE(wait_for(!mapped(2)));
}

/* Where the child gets the mapping anyway, some kernels accept it. */
TEST_F(gntdev_vma, dofork_changes_nothing)
{
	int error = madvise(at(5), PAGE_SIZE, MADV_DOFORK) ? errno : 0;

	EXPECT_TRUE(error == EINVAL || (translated() && !error));
	error = madvise(self->mem, SIZE, MADV_DOFORK) ? errno : 0;
	EXPECT_TRUE(error == EINVAL || (translated() && !error));
	fork_and_look(_metadata, self->mem, translated() ? 0 : SIGSEGV);
	EXPECT_EQ(0, madvise(self->mem, SIZE, MADV_DONTFORK));
	fork_and_look(_metadata, self->mem, SIGSEGV);
	EXPECT_TRUE(shared(0, MAX_GRANTS));
}

/* How many kB at @mem were accessed, by their PTEs, or -1 */
static long referenced_kb(const char *mem)
{
	FILE *file = fopen("/proc/self/smaps", "r");
	unsigned long start = 0, end;
	char line[256];
	long kb = -1;

	while (file && kb < 0 && fgets(line, sizeof(line), file))
		if (sscanf(line, "%lx-%lx ", &start, &end) != 2 &&
		    start == (unsigned long)mem)
			sscanf(line, "Referenced: %ld kB", &kb);
	if (file)
		fclose(file);
	return kb;
}

/*
 * On PV only the hypervisor may change these PTEs, so their accessed bits stay. It
 * would let a domain change them that is the granting domain, too.
 */
TEST_F(gntdev_vma, clear_refs_leaves_the_mapping)
{
	int fd = open("/proc/self/clear_refs", O_WRONLY | O_CLOEXEC);

	if (fd < 0)
		SKIP(return, "no /proc/self/clear_refs");
	EXPECT_TRUE(shared(0, MAX_GRANTS));
	EXPECT_EQ(SIZE / 1024, referenced_kb(self->mem));
	EXPECT_EQ(1, write(fd, "1", 1));
	EXPECT_EQ(translated() ? 0 : SIZE / 1024, referenced_kb(self->mem));
	EXPECT_TRUE(shared(0, MAX_GRANTS));
	close(fd);
}

/* This is to find out which memory is written to. It takes no memory away. */
TEST_F(gntdev_vma, clearing_soft_dirty_bits_unmaps_nothing)
{
	int fd = open("/proc/self/clear_refs", O_WRONLY | O_CLOEXEC);

	if (fd < 0)
		SKIP(return, "no /proc/self/clear_refs");
	ASSERT_TRUE(hold(self->pipe, at(1), 1));
	EXPECT_EQ(1, write(fd, "4", 1));
	EXPECT_TRUE(shared(0, MAX_GRANTS));
	close(fd);
	/* Had clear_refs unmapped them, this would be the second time. */
	EXPECT_EQ(0, munmap(self->mem, SIZE));
}

/* The scan protects pages that userfaultfd watches, and this mapping has none. */
TEST_F(gntdev_vma, scan_that_protects_written_pages_unmaps_nothing)
{
	struct pm_scan_arg op = {
		.size = sizeof(op),
		.flags = PM_SCAN_WP_MATCHING,
		.start = (uintptr_t)self->mem,
		.end = (uintptr_t)self->mem + SIZE,
		.category_mask = PAGE_IS_WRITTEN,
	};
	int fd = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);

	if (fd < 0)
		SKIP(return, "no /proc/self/pagemap");
	EXPECT_EQ(0, ioctl(fd, PAGEMAP_SCAN, &op));
	EXPECT_TRUE(shared(0, MAX_GRANTS));
	op.flags |= PM_SCAN_CHECK_WPASYNC;
	EXPECT_ERRNO(EPERM, ioctl(fd, PAGEMAP_SCAN, &op));
	EXPECT_TRUE(shared(0, MAX_GRANTS));
	close(fd);
}

/* The child maps the grants. This process reads and writes the child's memory. */
TEST_F(gntdev_vma, ptrace_reads_and_writes_the_mapping)
{
	int to_parent[2];
	char *mem;
	int status;
	pid_t pid;
	long word;

	ASSERT_EQ(0, pipe(to_parent));
	ASSERT_EQ(0, munmap(self->mem, SIZE));
	fill_page(granted(9), 9);
	pid = fork();
	ASSERT_LE(0, pid);
	if (!pid) {
		mem = gntdev_map(self->env.gntdev, self->ref, MAX_GRANTS, RW);
		if (mem == MAP_FAILED || ptrace(PTRACE_TRACEME, 0, 0, 0) ||
		    write(to_parent[1], &mem, sizeof(mem)) != sizeof(mem))
			_exit(1);
		raise(SIGSTOP);
		_exit(0);
	}
	ASSERT_EQ(pid, waitpid(pid, &status, 0));
	ASSERT_TRUE(WIFSTOPPED(status));
	ASSERT_EQ(sizeof(mem), read(to_parent[0], &mem, sizeof(mem)));
	mem = page(mem, 9);
	errno = 0;
	word = ptrace(PTRACE_PEEKDATA, pid, mem, 0);
	EXPECT_EQ(0, errno);
	EXPECT_EQ(*(long *)granted(9), word);
	EXPECT_EQ(0, ptrace(PTRACE_POKEDATA, pid, mem + 64, 0x1234567L));
	EXPECT_EQ(0x1234567L, *(long *)((char *)granted(9) + 64));
	EXPECT_EQ(0, ptrace(PTRACE_CONT, pid, 0, 0));
	ASSERT_EQ(pid, waitpid(pid, &status, 0));
	EXPECT_TRUE(WIFEXITED(status));
	EXPECT_EQ(0, WEXITSTATUS(status));
	EXPECT_TRUE(wait_for(!mapped(9)));
}

TEST_HARNESS_MAIN
