// SPDX-License-Identifier: GPL-2.0
/*
 * /dev/xen/gntdev answers wrong input with the documented error, and leaves nothing
 * behind. The end of each test checks the latter.
 */
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <sys/wait.h>

#include "xen_grant.h"

#include <xen/evtchn.h>

#define RW		(PROT_READ | PROT_WRITE)
#define NO_SUCH_DOMAIN	12345

/* @call returns -1 (or MAP_FAILED) and sets errno to @error. */
#define EXPECT_ERRNO(error, call)			\
do {							\
	errno = 0;					\
	EXPECT_EQ(-1L, (long)(call));			\
	EXPECT_EQ(error, errno);			\
} while (0)

FIXTURE(gntdev_ioctl)
{
	struct xen_env env;
	int fd;
	grant_ref_t *ref;
	char *mem;		/* of the granting side */
	char *edge;		/* a page, and behind it ... */
	void *no_access;	/* ... one that may not be accessed */
};

FIXTURE_SETUP(gntdev_ioctl)
{
	xen_env_setup(_metadata, &self->env);
	if (_metadata->exit_code)
		return;
	self->fd = self->env.gntdev;
	self->ref = self->env.grants.ref;
	self->mem = self->env.grants.mem;

	self->edge = mmap(NULL, 2 * PAGE_SIZE, RW, MAP_PRIVATE | MAP_ANONYMOUS,
			  -1, 0);
	ASSERT_NE(MAP_FAILED, self->edge);
	self->no_access = self->edge + PAGE_SIZE;
	ASSERT_EQ(0, mprotect(self->no_access, PAGE_SIZE, PROT_NONE));
}

FIXTURE_TEARDOWN(gntdev_ioctl)
{
	munmap(self->edge, 2 * PAGE_SIZE);
	xen_env_teardown(_metadata, &self->env);
}

TEST_F(gntdev_ioctl, unknown_command)
{
	EXPECT_ERRNO(ENOTTY, ioctl(self->fd, _IO('G', 255), self->edge));
	EXPECT_ERRNO(ENOTTY, ioctl(self->fd, 0, self->edge));
}

/* MAP_GRANT_REF */

TEST_F(gntdev_ioctl, map_grant_ref_of_no_or_too_many_grants)
{
	long limit = read_number("/sys/module/xen_gntdev/parameters/limit");
	struct ioctl_gntdev_map_grant_ref op = { };

	ASSERT_LT(0, limit);
	EXPECT_ERRNO(EINVAL, ioctl(self->fd, IOCTL_GNTDEV_MAP_GRANT_REF, &op));
	op.count = limit + 1;
	EXPECT_ERRNO(EINVAL, ioctl(self->fd, IOCTL_GNTDEV_MAP_GRANT_REF, &op));
	op.count = INT32_MAX;
	EXPECT_ERRNO(EINVAL, ioctl(self->fd, IOCTL_GNTDEV_MAP_GRANT_REF, &op));
	op.count = UINT32_MAX;
	EXPECT_ERRNO(EINVAL, ioctl(self->fd, IOCTL_GNTDEV_MAP_GRANT_REF, &op));
}

TEST_F(gntdev_ioctl, map_grant_ref_from_bad_memory)
{
	struct ioctl_gntdev_map_grant_ref *op;

	EXPECT_ERRNO(EFAULT,
		     ioctl(self->fd, IOCTL_GNTDEV_MAP_GRANT_REF, NULL));
	EXPECT_ERRNO(EFAULT, ioctl(self->fd, IOCTL_GNTDEV_MAP_GRANT_REF,
				   self->no_access));

	/* The first reference can be read, the second cannot. */
	op = self->no_access - sizeof(*op);
	op->count = 2;
	EXPECT_ERRNO(EFAULT, ioctl(self->fd, IOCTL_GNTDEV_MAP_GRANT_REF, op));
	EXPECT_ERRNO(EINVAL, mmap(NULL, 2 * PAGE_SIZE, RW, MAP_SHARED,
				  self->fd, 0));
}

/* Memory from which MAP_GRANT_REF's argument can be read, but not written */
static struct ioctl_gntdev_map_grant_ref *read_only_argument(void *page,
							     grant_ref_t ref)
{
	struct ioctl_gntdev_map_grant_ref *op = page;

	op->count = 1;
	op->refs[0].domid = granter_domid();
	op->refs[0].ref = ref;
	return mprotect(page, PAGE_SIZE, PROT_READ) ? NULL : op;
}

TEST_F(gntdev_ioctl, map_grant_ref_that_cannot_return_its_index)
{
	struct ioctl_gntdev_map_grant_ref *op;

	op = read_only_argument(self->edge, self->ref[0]);
	ASSERT_NE(NULL, op);
	EXPECT_ERRNO(EFAULT, ioctl(self->fd, IOCTL_GNTDEV_MAP_GRANT_REF, op));

	/* The index would have been 0. */
	EXPECT_ERRNO(EINVAL, mmap(NULL, PAGE_SIZE, RW, MAP_SHARED, self->fd, 0));
	EXPECT_ERRNO(ENOENT, gntdev_remove(self->fd, 0, 1));
	EXPECT_EQ(0, gntdev_add(self->fd, granter_domid(), self->ref, 1));
}

/* Another process with the same open file guesses the index meanwhile. */
TEST_F(gntdev_ioctl, map_grant_ref_that_cannot_return_its_index_under_race)
{
	struct ioctl_gntdev_map_grant_ref *op;
	unsigned int i;
	pid_t pid;

	op = read_only_argument(self->edge, self->ref[0]);
	ASSERT_NE(NULL, op);

	pid = fork();
	ASSERT_LE(0, pid);
	if (!pid) {
		for (;;) {
			void *mem = mmap(NULL, PAGE_SIZE, RW, MAP_SHARED,
					 self->fd, 0);

			gntdev_remove(self->fd, 0, 1);
			if (mem != MAP_FAILED)
				munmap(mem, PAGE_SIZE);
		}
	}
	for (i = 0; i < 2000; i++) {
		EXPECT_ERRNO(EFAULT, ioctl(self->fd, IOCTL_GNTDEV_MAP_GRANT_REF,
					   op));
		if (i % 16 == 0)
			sched_yield();
	}
	kill(pid, SIGKILL);
	ASSERT_EQ(pid, waitpid(pid, NULL, 0));
	EXPECT_ERRNO(ENOENT, gntdev_remove(self->fd, 0, 1));
}

/* mmap() */

/* Does mmap() say that there is no such grant, and map nothing? */
static bool cannot_map(int fd, domid_t domid, const grant_ref_t *ref,
		       unsigned int count)
{
	__s64 index = gntdev_add(fd, domid, ref, count);
	bool ok;

	if (index < 0)
		return false;
	errno = 0;
	ok = mmap(NULL, count * PAGE_SIZE, RW, MAP_SHARED, fd, index) ==
	     MAP_FAILED && errno == EINVAL;
	return !gntdev_remove(fd, index, count) && ok;
}

TEST_F(gntdev_ioctl, mmap_of_unknown_reference)
{
	grant_ref_t ref = UINT32_MAX;

	EXPECT_TRUE(cannot_map(self->fd, granter_domid(), &ref, 1));
	ref = 1 << 20;		/* beyond any grant table */
	EXPECT_TRUE(cannot_map(self->fd, granter_domid(), &ref, 1));

	/* In the table, and not granted */
	for (ref = self->env.table.count - 1; ref; ref--)
		if (!grant_flags(&self->env.table, ref))
			break;
	ASSERT_NE(0, ref);
	EXPECT_TRUE(cannot_map(self->fd, granter_domid(), &ref, 1));
}

TEST_F(gntdev_ioctl, mmap_of_reference_that_was_revoked)
{
	grant_ref_t ref = self->ref[0];

	grants_close(&self->env.grants);
	EXPECT_TRUE(cannot_map(self->fd, granter_domid(), &ref, 1));
}

TEST_F(gntdev_ioctl, mmap_of_reference_to_another_domain)
{
	struct grants foreign;

	ASSERT_EQ(0, grants_open(&foreign, 1, NO_SUCH_DOMAIN,
				 GNTALLOC_FLAG_WRITABLE));
	EXPECT_TRUE(cannot_map(self->fd, granter_domid(), foreign.ref, 1));
	grants_close(&foreign);
}

TEST_F(gntdev_ioctl, mmap_of_wrong_domain)
{
	EXPECT_TRUE(cannot_map(self->fd, NO_SUCH_DOMAIN, self->ref, 1));
	EXPECT_TRUE(cannot_map(self->fd, DOMID_SELF, self->ref, 1));
	EXPECT_TRUE(cannot_map(self->fd, UINT16_MAX, self->ref, 1));
}

TEST_F(gntdev_ioctl, mmap_with_one_bad_reference_maps_none)
{
	grant_ref_t ref[3];
	unsigned int bad, i;

	for (bad = 0; bad < 3; bad++) {
		memcpy(ref, self->ref, sizeof(ref));
		ref[bad] = UINT32_MAX;
		EXPECT_TRUE(cannot_map(self->fd, granter_domid(), ref, 3));
		for (i = 0; i < 3; i++)
			EXPECT_TRUE(wait_for(!grant_mapped(&self->env.table,
							   self->ref[i])));
	}
}

TEST_F(gntdev_ioctl, mmap_twice)
{
	__s64 index = gntdev_add(self->fd, granter_domid(), self->ref, 2);
	char *mem;

	ASSERT_LE(0, index);
	mem = mmap(NULL, 2 * PAGE_SIZE, RW, MAP_SHARED, self->fd, index);
	ASSERT_NE(MAP_FAILED, mem);
	EXPECT_ERRNO(EINVAL, mmap(NULL, 2 * PAGE_SIZE, RW, MAP_SHARED,
				  self->fd, index));
	EXPECT_TRUE(page_holds(mem, 0));
	EXPECT_TRUE(page_holds(mem + PAGE_SIZE, 1));
	ASSERT_EQ(0, munmap(mem, 2 * PAGE_SIZE));
}

TEST_F(gntdev_ioctl, mmap_of_wrong_size_or_offset)
{
	__s64 index = gntdev_add(self->fd, granter_domid(), self->ref, 2);
	char *mem;

	ASSERT_LE(0, index);
	EXPECT_ERRNO(EINVAL, mmap(NULL, PAGE_SIZE, RW, MAP_SHARED,
				  self->fd, index));
	EXPECT_ERRNO(EINVAL, mmap(NULL, 3 * PAGE_SIZE, RW, MAP_SHARED,
				  self->fd, index));
	EXPECT_ERRNO(EINVAL, mmap(NULL, 2 * PAGE_SIZE, RW, MAP_SHARED,
				  self->fd, index + PAGE_SIZE));
	EXPECT_ERRNO(EINVAL, mmap(NULL, PAGE_SIZE, RW, MAP_SHARED,
				  self->fd, index + PAGE_SIZE));

	/* After all that the map can still be mapped. */
	mem = mmap(NULL, 2 * PAGE_SIZE, RW, MAP_SHARED, self->fd, index);
	ASSERT_NE(MAP_FAILED, mem);
	EXPECT_TRUE(page_holds(mem, 0));
	ASSERT_EQ(0, munmap(mem, 2 * PAGE_SIZE));
}

/* Cut down to 32 bits, the page offset is that of the mapping. */
TEST_F(gntdev_ioctl, offset_that_does_not_fit)
{
	__u64 wraps = (1ULL << 32) * PAGE_SIZE;

	ASSERT_EQ(0, gntdev_add(self->fd, granter_domid(), self->ref, 1));
	EXPECT_ERRNO(EINVAL, mmap(NULL, PAGE_SIZE, RW, MAP_SHARED, self->fd,
				  wraps));
	EXPECT_ERRNO(ENOENT, gntdev_remove(self->fd, wraps, 1));
}

TEST_F(gntdev_ioctl, mmap_private_cannot_be_written)
{
	__s64 index = gntdev_add(self->fd, granter_domid(), self->ref, 1);
	char *mem;

	ASSERT_LE(0, index);
	EXPECT_ERRNO(EINVAL, mmap(NULL, PAGE_SIZE, RW, MAP_PRIVATE,
				  self->fd, index));
	mem = mmap(NULL, PAGE_SIZE, PROT_READ, MAP_PRIVATE, self->fd, index);
	ASSERT_NE(MAP_FAILED, mem);
	EXPECT_ERRNO(EACCES, mprotect(mem, PAGE_SIZE, RW));
	EXPECT_TRUE(page_holds(mem, 0));
	ASSERT_EQ(0, munmap(mem, PAGE_SIZE));
}

TEST_F(gntdev_ioctl, mmap_of_read_only_grant)
{
	struct grants read_only;
	__s64 index;
	char *mem;

	ASSERT_EQ(0, grants_open(&read_only, 1, own_domid(), 0));
	fill_page(read_only.mem, 7);
	EXPECT_TRUE(cannot_map(self->fd, granter_domid(), read_only.ref, 1));

	index = gntdev_add(self->fd, granter_domid(), read_only.ref, 1);
	ASSERT_LE(0, index);
	mem = mmap(NULL, PAGE_SIZE, PROT_READ, MAP_SHARED, self->fd, index);
	ASSERT_NE(MAP_FAILED, mem);
	EXPECT_TRUE(page_holds(mem, 7));
	ASSERT_EQ(0, munmap(mem, PAGE_SIZE));
	grants_close(&read_only);
}

/* The second grant may only be read: an attempt to write maps the first alone. */
TEST_F(gntdev_ioctl, mmap_that_failed_can_be_tried_again)
{
	struct grants read_only;
	grant_ref_t ref[2];
	__s64 index;
	char *mem;

	ASSERT_EQ(0, grants_open(&read_only, 1, own_domid(), 0));
	fill_page(read_only.mem, 7);
	ref[0] = self->ref[0];
	ref[1] = read_only.ref[0];
	index = gntdev_add(self->fd, granter_domid(), ref, 2);
	ASSERT_LE(0, index);

	EXPECT_ERRNO(EINVAL, mmap(NULL, 2 * PAGE_SIZE, RW, MAP_SHARED,
				  self->fd, index));
	EXPECT_FALSE(grant_mapped(&self->env.table, ref[0]));
	mem = mmap(NULL, 2 * PAGE_SIZE, PROT_READ, MAP_SHARED, self->fd, index);
	ASSERT_NE(MAP_FAILED, mem);
	EXPECT_TRUE(page_holds(page(mem, 0), 0));
	EXPECT_TRUE(page_holds(page(mem, 1), 7));

	/* Once it has been mapped it cannot be mapped again. */
	ASSERT_EQ(0, munmap(mem, 2 * PAGE_SIZE));
	EXPECT_ERRNO(EINVAL, mmap(NULL, 2 * PAGE_SIZE, PROT_READ, MAP_SHARED,
				  self->fd, index));
	EXPECT_EQ(0, gntdev_remove(self->fd, index, 2));
	grants_close(&read_only);
}

/* UNMAP_GRANT_REF */

TEST_F(gntdev_ioctl, unmap_grant_ref_of_what_is_not_there)
{
	__s64 index = gntdev_add(self->fd, granter_domid(), self->ref, 2);

	ASSERT_LE(0, index);
	EXPECT_ERRNO(EFAULT,
		     ioctl(self->fd, IOCTL_GNTDEV_UNMAP_GRANT_REF, NULL));
	EXPECT_ERRNO(EFAULT, ioctl(self->fd, IOCTL_GNTDEV_UNMAP_GRANT_REF,
				   self->no_access));
	EXPECT_ERRNO(ENOENT, gntdev_remove(self->fd, index + PAGE_SIZE, 2));
	EXPECT_ERRNO(ENOENT, gntdev_remove(self->fd, index, 1));
	EXPECT_ERRNO(ENOENT, gntdev_remove(self->fd, index, 3));
	EXPECT_ERRNO(ENOENT, gntdev_remove(self->fd, index, UINT32_MAX));
	EXPECT_EQ(0, gntdev_remove(self->fd, index, 2));
	EXPECT_ERRNO(ENOENT, gntdev_remove(self->fd, index, 2));
}

/* GET_OFFSET_FOR_VADDR */

TEST_F(gntdev_ioctl, get_offset_for_vaddr_of_other_memory)
{
	struct ioctl_gntdev_get_offset_for_vaddr op = {
		.vaddr = (uintptr_t)self->edge,
	};

	EXPECT_ERRNO(EINVAL,
		     ioctl(self->fd, IOCTL_GNTDEV_GET_OFFSET_FOR_VADDR, &op));
	op.vaddr = UINT64_MAX;
	EXPECT_ERRNO(EINVAL,
		     ioctl(self->fd, IOCTL_GNTDEV_GET_OFFSET_FOR_VADDR, &op));
	EXPECT_ERRNO(EFAULT,
		     ioctl(self->fd, IOCTL_GNTDEV_GET_OFFSET_FOR_VADDR, NULL));
}

/* include/uapi/xen/gntdev.h: "otherwise an error will result" */
TEST_F(gntdev_ioctl, get_offset_for_vaddr_below_the_mapping)
{
	struct ioctl_gntdev_get_offset_for_vaddr op = { };
	__s64 index = gntdev_add(self->fd, granter_domid(), self->ref, 1);
	void *hole, *mem;

	ASSERT_LE(0, index);
	hole = mmap(NULL, 2 * PAGE_SIZE, PROT_NONE,
		    MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	ASSERT_NE(MAP_FAILED, hole);
	mem = mmap(hole + PAGE_SIZE, PAGE_SIZE, RW, MAP_SHARED | MAP_FIXED,
		   self->fd, index);
	ASSERT_NE(MAP_FAILED, mem);
	ASSERT_EQ(0, munmap(hole, PAGE_SIZE));

	op.vaddr = (uintptr_t)hole;
	EXPECT_ERRNO(EINVAL,
		     ioctl(self->fd, IOCTL_GNTDEV_GET_OFFSET_FOR_VADDR, &op));
	ASSERT_EQ(0, munmap(mem, PAGE_SIZE));
}

TEST_F(gntdev_ioctl, get_offset_for_vaddr_that_cannot_return_it)
{
	struct ioctl_gntdev_get_offset_for_vaddr *op = (void *)self->edge;
	__s64 index;
	char *mem;

	ASSERT_LE(0, gntdev_add(self->fd, granter_domid(), self->ref + 2, 3));
	index = gntdev_add(self->fd, granter_domid(), self->ref, 2);
	ASSERT_LT(0, index);
	mem = mmap(NULL, 2 * PAGE_SIZE, RW, MAP_SHARED, self->fd, index);
	ASSERT_NE(MAP_FAILED, mem);

	op->vaddr = (uintptr_t)mem;
	EXPECT_EQ(0, ioctl(self->fd, IOCTL_GNTDEV_GET_OFFSET_FOR_VADDR, op));
	EXPECT_EQ(index, op->offset);
	EXPECT_EQ(2, op->count);
	ASSERT_EQ(0, mprotect(op, PAGE_SIZE, PROT_READ));
	EXPECT_ERRNO(EFAULT,
		     ioctl(self->fd, IOCTL_GNTDEV_GET_OFFSET_FOR_VADDR, op));
	ASSERT_EQ(0, munmap(mem, 2 * PAGE_SIZE));
}

/* SET_UNMAP_NOTIFY */

static int set_notify(int fd, __u64 index, __u32 action, __u32 port)
{
	struct ioctl_gntdev_unmap_notify op = {
		.index = index, .action = action, .event_channel_port = port,
	};

	return ioctl(fd, IOCTL_GNTDEV_SET_UNMAP_NOTIFY, &op);
}

TEST_F(gntdev_ioctl, set_unmap_notify_of_what_is_not_there)
{
	__s64 index = gntdev_add(self->fd, granter_domid(), self->ref, 1);

	ASSERT_LE(0, index);
	EXPECT_ERRNO(EFAULT,
		     ioctl(self->fd, IOCTL_GNTDEV_SET_UNMAP_NOTIFY, NULL));
	EXPECT_ERRNO(EINVAL, set_notify(self->fd, index, 4, 0));
	EXPECT_ERRNO(EINVAL, set_notify(self->fd, index, UINT32_MAX, 0));
	EXPECT_ERRNO(ENOENT, set_notify(self->fd, index + PAGE_SIZE,
					UNMAP_NOTIFY_CLEAR_BYTE, 0));
	EXPECT_ERRNO(ENOENT, set_notify(self->fd, UINT64_MAX,
					UNMAP_NOTIFY_CLEAR_BYTE, 0));
	EXPECT_ERRNO(EINVAL, set_notify(self->fd, index,
					UNMAP_NOTIFY_SEND_EVENT, UINT32_MAX));
}

TEST_F(gntdev_ioctl, clear_byte_at_munmap)
{
	__s64 index = gntdev_add(self->fd, granter_domid(), self->ref, 2);
	char *mem;

	ASSERT_LE(0, index);
	mem = mmap(NULL, 2 * PAGE_SIZE, RW, MAP_SHARED, self->fd, index);
	ASSERT_NE(MAP_FAILED, mem);
	ASSERT_EQ(0, set_notify(self->fd, index + PAGE_SIZE + 5,
				UNMAP_NOTIFY_CLEAR_BYTE, 0));
	memset(self->mem, 'x', 2 * PAGE_SIZE);
	ASSERT_EQ(0, munmap(mem, 2 * PAGE_SIZE));
	/* Where the file keeps the grants mapped, the mapping has not ended yet. */
	if (translated()) {
		EXPECT_TRUE(grant_mapped(&self->env.table, self->ref[1]));
		EXPECT_EQ('x', self->mem[PAGE_SIZE + 5]);
		ASSERT_EQ(0, gntdev_remove(self->fd, index, 2));
	}
	EXPECT_TRUE(wait_for(!self->mem[PAGE_SIZE + 5]));
	EXPECT_EQ('x', self->mem[5]);
	EXPECT_EQ('x', self->mem[PAGE_SIZE + 4]);
	EXPECT_EQ('x', self->mem[PAGE_SIZE + 6]);
}

/* An event channel from this domain to itself: @to is its port at file @fd[1]. */
static bool open_channel(int *fd, __u32 *to)
{
	struct ioctl_evtchn_bind_unbound_port unbound = { .remote_domain = DOMID_SELF };
	struct ioctl_evtchn_bind_interdomain bind = { .remote_domain = DOMID_SELF };
	int port;

	fd[0] = open("/dev/xen/evtchn", O_RDWR | O_CLOEXEC);
	fd[1] = open("/dev/xen/evtchn", O_RDWR | O_CLOEXEC);
	port = ioctl(fd[0], IOCTL_EVTCHN_BIND_UNBOUND_PORT, &unbound);
	if (port < 0)
		return false;
	bind.remote_port = port;
	port = ioctl(fd[1], IOCTL_EVTCHN_BIND_INTERDOMAIN, &bind);
	*to = port;
	return port >= 0;
}

/*
 * The peer waits for the event. It must not have to wait for anybody who holds the
 * pages.
 */
TEST_F(gntdev_ioctl, event_does_not_wait_for_a_held_page)
{
	__s64 index = gntdev_add(self->fd, granter_domid(), self->ref, 2);
	int channel[2], pipe_fd[2];
	char *mem, copy[PAGE_SIZE];
	__u32 port;

	ASSERT_LE(0, index);
	ASSERT_TRUE(open_channel(channel, &port));
	/* Binding a channel raises an event, too. */
	event_came(channel[0], 1000);
	ASSERT_EQ(0, pipe2(pipe_fd, O_CLOEXEC));
	mem = mmap(NULL, 2 * PAGE_SIZE, RW, MAP_SHARED, self->fd, index);
	ASSERT_NE(MAP_FAILED, mem);
	ASSERT_EQ(0, set_notify(self->fd, index + 5,
				UNMAP_NOTIFY_CLEAR_BYTE | UNMAP_NOTIFY_SEND_EVENT,
				port));
	self->mem[5] = 'x';
	ASSERT_TRUE(hold(pipe_fd, page(mem, 1), 1));

	/* The file still has the map. */
	ASSERT_EQ(0, munmap(mem, 2 * PAGE_SIZE));
	EXPECT_FALSE(event_came(channel[0], 0));
	EXPECT_EQ(0, gntdev_remove(self->fd, index, 2));
	EXPECT_TRUE(event_came(channel[0], WAIT_MS));
	EXPECT_EQ(0, self->mem[5]);
	EXPECT_TRUE(grant_mapped(&self->env.table, self->ref[1]));

	/* The event comes only once. */
	EXPECT_TRUE(drain(pipe_fd, copy));
	EXPECT_TRUE(page_holds(copy, 1));
	EXPECT_TRUE(wait_for(!grant_mapped(&self->env.table, self->ref[1])));
	EXPECT_FALSE(event_came(channel[0], 100));
	close(channel[0]);
	close(channel[1]);
	close(pipe_fd[0]);
	close(pipe_fd[1]);
}

TEST_F(gntdev_ioctl, clear_byte_of_page_that_was_not_mapped)
{
	grant_ref_t ref[2] = { self->ref[0], UINT32_MAX };
	__s64 index = gntdev_add(self->fd, granter_domid(), ref, 2);

	ASSERT_LE(0, index);
	ASSERT_EQ(0, set_notify(self->fd, index + PAGE_SIZE + 5,
				UNMAP_NOTIFY_CLEAR_BYTE, 0));
	EXPECT_ERRNO(EINVAL, mmap(NULL, 2 * PAGE_SIZE, RW, MAP_SHARED,
				  self->fd, index));
	EXPECT_EQ(0, gntdev_remove(self->fd, index, 2));
	EXPECT_TRUE(page_holds(self->mem, 0));
}

/*
 * At first the second grant cannot be mapped. The process goes on, so the peer must
 * not be told that it has ended.
 */
TEST_F(gntdev_ioctl, clear_byte_waits_for_the_end_of_a_mapping_that_succeeded)
{
	__u16 *flags = &self->env.table.entry[self->ref[1]].flags;
	__s64 index = gntdev_add(self->fd, granter_domid(), self->ref, 2);
	char *mem;

	ASSERT_LE(0, index);
	ASSERT_EQ(0, set_notify(self->fd, index + 5, UNMAP_NOTIFY_CLEAR_BYTE, 0));
	self->mem[5] = 'x';
	*flags = 0;
	EXPECT_ERRNO(EINVAL, mmap(NULL, 2 * PAGE_SIZE, RW, MAP_SHARED,
				  self->fd, index));
	*flags = GTF_permit_access;
	EXPECT_EQ('x', self->mem[5]);
	EXPECT_FALSE(grant_mapped(&self->env.table, self->ref[0]));

	mem = mmap(NULL, 2 * PAGE_SIZE, RW, MAP_SHARED, self->fd, index);
	ASSERT_NE(MAP_FAILED, mem);
	EXPECT_EQ('x', mem[5]);
	ASSERT_EQ(0, gntdev_unmap(self->fd, mem, 2));
	EXPECT_EQ(0, self->mem[5]);
}

TEST_F(gntdev_ioctl, clear_byte_of_read_only_mapping)
{
	__s64 index = gntdev_add(self->fd, granter_domid(), self->ref, 1);
	void *mem;

	ASSERT_LE(0, index);
	mem = mmap(NULL, PAGE_SIZE, PROT_READ, MAP_SHARED, self->fd, index);
	ASSERT_NE(MAP_FAILED, mem);
	EXPECT_ERRNO(EINVAL, set_notify(self->fd, index,
					UNMAP_NOTIFY_CLEAR_BYTE, 0));
	ASSERT_EQ(0, munmap(mem, PAGE_SIZE));
	EXPECT_TRUE(page_holds(self->mem, 0));
}

/* The notification is set before it is known that the mapping is read-only. */
TEST_F(gntdev_ioctl, clear_byte_of_mapping_that_becomes_read_only)
{
	__s64 index = gntdev_add(self->fd, granter_domid(), self->ref, 1);
	void *mem;

	ASSERT_LE(0, index);
	if (!set_notify(self->fd, index, UNMAP_NOTIFY_CLEAR_BYTE, 0)) {
		mem = mmap(NULL, PAGE_SIZE, PROT_READ, MAP_SHARED, self->fd,
			   index);
		if (mem != MAP_FAILED)
			ASSERT_EQ(0, munmap(mem, PAGE_SIZE));
	}
	EXPECT_TRUE(page_holds(self->mem, 0));
}

/* GRANT_COPY */

static int grant_copy(int fd, struct gntdev_grant_copy_segment *segments,
		      unsigned int count)
{
	struct ioctl_gntdev_grant_copy op = {
		.count = count, .segments = segments,
	};

	return ioctl(fd, IOCTL_GNTDEV_GRANT_COPY, &op);
}

static struct gntdev_grant_copy_segment copy_from(grant_ref_t ref, void *to)
{
	return (struct gntdev_grant_copy_segment) {
		.source.foreign = { .ref = ref, .domid = granter_domid() },
		.dest.virt = to,
		.len = PAGE_SIZE,
		.flags = GNTCOPY_source_gref,
		.status = 1,
	};
}

static struct gntdev_grant_copy_segment copy_to(grant_ref_t ref, void *from)
{
	return (struct gntdev_grant_copy_segment) {
		.source.virt = from,
		.dest.foreign = { .ref = ref, .domid = granter_domid() },
		.len = PAGE_SIZE,
		.flags = GNTCOPY_dest_gref,
		.status = 1,
	};
}

TEST_F(gntdev_ioctl, grant_copy_moves_data_both_ways)
{
	char to[PAGE_SIZE], from[PAGE_SIZE];
	struct gntdev_grant_copy_segment segment[] = {
		copy_from(self->ref[3], to), copy_to(self->ref[4], from),
	};

	fill_page(from, 44);
	ASSERT_EQ(0, grant_copy(self->fd, segment, 2));
	EXPECT_EQ(GNTST_okay, segment[0].status);
	EXPECT_EQ(GNTST_okay, segment[1].status);
	EXPECT_TRUE(page_holds(to, 3));
	EXPECT_TRUE(page_holds(self->mem + 4 * PAGE_SIZE, 44));
}

TEST_F(gntdev_ioctl, grant_copy_of_wrong_segments)
{
	char buf[PAGE_SIZE];
	struct gntdev_grant_copy_segment segment = { };

	fill_page(buf, 0);

	/* From local to local memory */
	segment.source.virt = buf;
	segment.dest.virt = self->edge;
	segment.len = 8;
	EXPECT_ERRNO(EINVAL, grant_copy(self->fd, &segment, 1));

	/* Across the end of the granted page */
	segment = copy_from(self->ref[0], buf);
	segment.source.foreign.offset = 1;
	EXPECT_ERRNO(EINVAL, grant_copy(self->fd, &segment, 1));
	segment = copy_to(self->ref[0], buf);
	segment.dest.foreign.offset = PAGE_SIZE - 1;
	segment.len = 2;
	EXPECT_ERRNO(EINVAL, grant_copy(self->fd, &segment, 1));

	/* Xen refuses: that is the segment's status, not an error. */
	segment = copy_from(UINT32_MAX, buf);
	EXPECT_EQ(0, grant_copy(self->fd, &segment, 1));
	EXPECT_EQ(GNTST_bad_gntref, segment.status);
	segment = copy_from(self->ref[0], buf);
	segment.source.foreign.domid = NO_SUCH_DOMAIN;
	EXPECT_EQ(0, grant_copy(self->fd, &segment, 1));
	EXPECT_EQ(GNTST_bad_domain, segment.status);

	EXPECT_EQ(0, grant_copy(self->fd, NULL, 0));
	EXPECT_TRUE(page_holds(buf, 0));
	EXPECT_TRUE(page_holds(self->mem, 0));
}

TEST_F(gntdev_ioctl, grant_copy_to_read_only_grant)
{
	struct gntdev_grant_copy_segment segment;
	struct grants read_only;
	char buf[PAGE_SIZE];

	ASSERT_EQ(0, grants_open(&read_only, 1, own_domid(), 0));
	fill_page(read_only.mem, 8);
	memset(buf, 'x', sizeof(buf));
	segment = copy_to(read_only.ref[0], buf);
	EXPECT_EQ(0, grant_copy(self->fd, &segment, 1));
	EXPECT_GT(0, segment.status);
	EXPECT_TRUE(page_holds(read_only.mem, 8));
	grants_close(&read_only);
}

TEST_F(gntdev_ioctl, grant_copy_with_bad_pointers)
{
	struct gntdev_grant_copy_segment *edge = self->no_access, segment;

	EXPECT_ERRNO(EFAULT, ioctl(self->fd, IOCTL_GNTDEV_GRANT_COPY, NULL));
	EXPECT_ERRNO(EFAULT, grant_copy(self->fd, NULL, 1));
	EXPECT_ERRNO(EFAULT, grant_copy(self->fd, self->no_access, 1));

	/* Local memory that is not there, or cannot be written */
	segment = copy_from(self->ref[0], self->no_access);
	EXPECT_ERRNO(EFAULT, grant_copy(self->fd, &segment, 1));
	segment = copy_to(self->ref[0], self->no_access);
	EXPECT_ERRNO(EFAULT, grant_copy(self->fd, &segment, 1));

	/* First the second segment cannot be read, then a status cannot be written. */
	edge[-1] = copy_to(self->ref[1], self->edge);
	EXPECT_ERRNO(EFAULT, grant_copy(self->fd, edge - 1, 2));
	ASSERT_EQ(0, mprotect(self->edge, PAGE_SIZE, PROT_READ));
	EXPECT_ERRNO(EFAULT, grant_copy(self->fd, edge - 1, 1));
	segment = copy_from(self->ref[0], self->edge);
	EXPECT_ERRNO(EFAULT, grant_copy(self->fd, &segment, 1));
	EXPECT_TRUE(page_holds(self->mem, 0));
	EXPECT_TRUE(page_holds(self->mem + PAGE_SIZE, 1));
}

/* DMABUF_* */

static bool has_dmabuf(int fd)
{
	errno = 0;
	ioctl(fd, IOCTL_GNTDEV_DMABUF_IMP_RELEASE, NULL);
	return errno != ENOTTY;
}

/* On PV this refuses every input. It must not do anything else, either. */
TEST_F(gntdev_ioctl, dmabuf_exp_from_refs_of_no_or_too_many_grants)
{
	struct ioctl_gntdev_dmabuf_exp_from_refs op = { .domid = granter_domid() };

	if (!has_dmabuf(self->fd))
		SKIP(return, "CONFIG_XEN_GNTDEV_DMABUF is off");
	EXPECT_ERRNO(EINVAL, ioctl(self->fd, IOCTL_GNTDEV_DMABUF_EXP_FROM_REFS,
				   &op));
	op.count = UINT32_MAX;
	EXPECT_ERRNO(EINVAL, ioctl(self->fd, IOCTL_GNTDEV_DMABUF_EXP_FROM_REFS,
				   &op));
}

TEST_F(gntdev_ioctl, dmabuf_exp_wait_released_of_what_is_not_there)
{
	struct ioctl_gntdev_dmabuf_exp_wait_released op = { };

	if (!has_dmabuf(self->fd))
		SKIP(return, "CONFIG_XEN_GNTDEV_DMABUF is off");
	EXPECT_ERRNO(EFAULT,
		     ioctl(self->fd, IOCTL_GNTDEV_DMABUF_EXP_WAIT_RELEASED,
			   NULL));
	op.fd = self->fd;
	EXPECT_ERRNO(ENOENT,
		     ioctl(self->fd, IOCTL_GNTDEV_DMABUF_EXP_WAIT_RELEASED,
			   &op));
	op.fd = UINT32_MAX;
	EXPECT_ERRNO(ENOENT,
		     ioctl(self->fd, IOCTL_GNTDEV_DMABUF_EXP_WAIT_RELEASED,
			   &op));
}

TEST_F(gntdev_ioctl, dmabuf_imp_to_refs_of_wrong_input)
{
	struct ioctl_gntdev_dmabuf_imp_to_refs op = { .fd = self->fd };

	if (!has_dmabuf(self->fd))
		SKIP(return, "CONFIG_XEN_GNTDEV_DMABUF is off");
	EXPECT_ERRNO(EFAULT, ioctl(self->fd, IOCTL_GNTDEV_DMABUF_IMP_TO_REFS,
				   NULL));
	EXPECT_ERRNO(EINVAL, ioctl(self->fd, IOCTL_GNTDEV_DMABUF_IMP_TO_REFS,
				   &op));
	op.count = UINT32_MAX;
	EXPECT_ERRNO(EINVAL, ioctl(self->fd, IOCTL_GNTDEV_DMABUF_IMP_TO_REFS,
				   &op));

	/* First a file that is no dma-buf, then no file at all */
	op.count = 1;
	EXPECT_ERRNO(EINVAL, ioctl(self->fd, IOCTL_GNTDEV_DMABUF_IMP_TO_REFS,
				   &op));
	op.fd = UINT32_MAX;
	EXPECT_ERRNO(EBADF, ioctl(self->fd, IOCTL_GNTDEV_DMABUF_IMP_TO_REFS,
				  &op));
}

TEST_F(gntdev_ioctl, dmabuf_imp_release_of_what_is_not_there)
{
	struct ioctl_gntdev_dmabuf_imp_release op = { .fd = self->fd };

	if (!has_dmabuf(self->fd))
		SKIP(return, "CONFIG_XEN_GNTDEV_DMABUF is off");
	EXPECT_ERRNO(EFAULT, ioctl(self->fd, IOCTL_GNTDEV_DMABUF_IMP_RELEASE,
				   NULL));
	EXPECT_ERRNO(ENOENT, ioctl(self->fd, IOCTL_GNTDEV_DMABUF_IMP_RELEASE,
				   &op));
	op.fd = UINT32_MAX;
	EXPECT_ERRNO(ENOENT, ioctl(self->fd, IOCTL_GNTDEV_DMABUF_IMP_RELEASE,
				   &op));
}

TEST_HARNESS_MAIN
