/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Ways to do direct I/O, on a disk that is made for the test. The disk is a loop
 * device on a memfd, so a test can read and set its contents without the block
 * layer. Everything is done by system calls, to need no library.
 */
#ifndef XEN_DIRECT_IO_H
#define XEN_DIRECT_IO_H

#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/uio.h>
#include <linux/aio_abi.h>
#include <linux/dm-ioctl.h>
#include <linux/io_uring.h>
#include <linux/loop.h>
#include "../../../../mm/gup_test.h"

#define DISK_SIZE	0x100000

struct disk {
	int memfd;	/* the contents of the disk */
	int fd;		/* the disk, opened for direct I/O */
	char path[32];
};

/* A linear mapping of a disk. While it is suspended, I/O to it stays in flight. */
struct dm_disk {
	int control;
	int fd;
	char name[32];
};

/* The device goes away by itself when its last user has gone. */
static inline int disk_open(struct disk *d)
{
	struct loop_config config = {
		.info.lo_flags = LO_FLAGS_AUTOCLEAR,
	};
	int control, number, loop = -1, tries = 10;

	d->memfd = memfd_create("disk", MFD_CLOEXEC);
	if (d->memfd < 0 || ftruncate(d->memfd, DISK_SIZE))
		return -1;
	config.fd = d->memfd;

	control = open("/dev/loop-control", O_RDWR | O_CLOEXEC);
	if (control < 0)
		return -1;
	do {	/* Somebody else may take the free one first. */
		if (loop >= 0)
			close(loop);
		number = ioctl(control, LOOP_CTL_GET_FREE);
		snprintf(d->path, sizeof(d->path), "/dev/loop%d", number);
		loop = open(d->path, O_RDWR | O_CLOEXEC);
	} while (loop >= 0 && ioctl(loop, LOOP_CONFIGURE, &config) &&
		 errno == EBUSY && --tries);
	close(control);
	if (loop < 0)
		return -1;

	d->fd = open(d->path, O_RDWR | O_DIRECT | O_CLOEXEC);
	close(loop);
	return d->fd < 0 ? -1 : 0;
}

static inline void disk_close(struct disk *d)
{
	if (d->fd > 0)
		close(d->fd);
	if (d->memfd > 0)
		close(d->memfd);
	memset(d, 0, sizeof(*d));
}

struct dm_request {
	struct dm_ioctl io;
	struct dm_target_spec target;
	char params[64];
};

static inline int dm_request(struct dm_disk *dm, unsigned long cmd,
			     struct dm_request *req, __u32 flags)
{
	req->io.version[0] = DM_VERSION_MAJOR;
	req->io.data_size = sizeof(*req);
	req->io.data_start = offsetof(struct dm_request, target);
	req->io.flags = flags;
	snprintf(req->io.name, sizeof(req->io.name), "%s", dm->name);
	return ioctl(dm->control, cmd, req);
}

/* There is no flush, so I/O stays in flight. */
static inline int dm_suspend(struct dm_disk *dm)
{
	struct dm_request req = { };

	return dm_request(dm, DM_DEV_SUSPEND, &req, DM_SUSPEND_FLAG |
			  DM_NOFLUSH_FLAG | DM_SKIP_LOCKFS_FLAG);
}

static inline int dm_resume(struct dm_disk *dm)
{
	struct dm_request req = { };

	return dm_request(dm, DM_DEV_SUSPEND, &req, 0);
}

static inline int dm_open(struct dm_disk *dm, const struct disk *d)
{
	struct dm_request create = { };
	struct dm_request load = {
		.io.target_count = 1,
		.target.length = DISK_SIZE / 512,
		.target.target_type = "linear",
	};
	char path[32];

	snprintf(dm->name, sizeof(dm->name), "xen-selftest-%d", getpid());
	snprintf(load.params, sizeof(load.params), "%s 0", d->path);

	dm->control = open("/dev/mapper/control", O_RDWR | O_CLOEXEC);
	if (dm->control < 0)
		return -1;
	if (dm_request(dm, DM_DEV_CREATE, &create, 0) ||
	    dm_request(dm, DM_TABLE_LOAD, &load, 0) || dm_resume(dm))
		return -1;

	snprintf(path, sizeof(path), "/dev/dm-%u", minor(create.io.dev));
	dm->fd = open(path, O_RDWR | O_DIRECT | O_CLOEXEC);
	return dm->fd < 0 ? -1 : 0;
}

/* Resume the device first: while it is suspended, I/O in flight cannot end. */
static inline void dm_close(struct dm_disk *dm)
{
	struct dm_request req = { };

	if (dm->control <= 0)
		return;
	dm_resume(dm);
	if (dm->fd > 0)
		close(dm->fd);
	dm_request(dm, DM_DEV_REMOVE, &req, 0);
	close(dm->control);
	memset(dm, 0, sizeof(*dm));
}

/* Synchronous */

static inline bool plain_works(void)
{
	return true;
}

static inline ssize_t plain_rw(int fd, bool write, void *buf, size_t len)
{
	return write ? pwrite(fd, buf, len, 0) : pread(fd, buf, len, 0);
}

/* POSIX AIO's kernel side */

static inline int aio_start(aio_context_t *ctx, int fd, bool write, void *buf,
			    size_t len)
{
	struct iocb iocb = {
		.aio_lio_opcode = write ? IOCB_CMD_PWRITE : IOCB_CMD_PREAD,
		.aio_fildes = fd,
		.aio_buf = (unsigned long)buf,
		.aio_nbytes = len,
	};
	struct iocb *list[] = { &iocb };

	if (syscall(__NR_io_setup, 1, ctx))
		return -1;
	return syscall(__NR_io_submit, *ctx, 1, list) == 1 ? 0 : -1;
}

static inline bool aio_in_flight(aio_context_t ctx)
{
	struct timespec now = { };
	struct io_event event;

	return syscall(__NR_io_getevents, ctx, 0, 1, &event, &now) == 0;
}

static inline ssize_t aio_finish(aio_context_t ctx)
{
	struct io_event event = { .res = -EIO };

	if (syscall(__NR_io_getevents, ctx, 1, 1, &event, NULL) != 1)
		return -1;
	syscall(__NR_io_destroy, ctx);
	return event.res;
}

static inline bool aio_works(void)
{
	aio_context_t ctx = 0;

	return !syscall(__NR_io_setup, 1, &ctx) &&
	       !syscall(__NR_io_destroy, ctx);
}

static inline ssize_t aio_rw(int fd, bool write, void *buf, size_t len)
{
	aio_context_t ctx = 0;

	if (aio_start(&ctx, fd, write, buf, len))
		return -1;
	return aio_finish(ctx);
}

/* io_uring, one request at a time */

struct uring {
	int fd;
	bool registered;
	__u32 *sq_tail, *sq_array, *cq_head, *cq_tail, *cq_mask;
	struct io_uring_sqe *sqe;
	struct io_uring_cqe *cqe;
	void *ring;
	size_t ring_size;
};

/* If there is @buf, register it. The ring holds its pages until the ring is closed. */
static inline int uring_open(struct uring *u, void *buf, size_t len)
{
	struct iovec iov = { .iov_base = buf, .iov_len = len };
	struct io_uring_params p = { };

	memset(u, 0, sizeof(*u));
	u->fd = syscall(__NR_io_uring_setup, 1, &p);
	if (u->fd < 0)
		return -1;
	if (!(p.features & IORING_FEAT_SINGLE_MMAP)) {
		errno = EOPNOTSUPP;
		return -1;
	}

	u->ring_size = p.cq_off.cqes + p.cq_entries * sizeof(*u->cqe);
	if (u->ring_size < p.sq_off.array + p.sq_entries * sizeof(__u32))
		u->ring_size = p.sq_off.array + p.sq_entries * sizeof(__u32);
	u->ring = mmap(NULL, u->ring_size, PROT_READ | PROT_WRITE, MAP_SHARED,
		       u->fd, IORING_OFF_SQ_RING);
	u->sqe = mmap(NULL, sizeof(*u->sqe), PROT_READ | PROT_WRITE, MAP_SHARED,
		      u->fd, IORING_OFF_SQES);
	if (u->ring == MAP_FAILED || u->sqe == MAP_FAILED)
		return -1;
	u->sq_tail = u->ring + p.sq_off.tail;
	u->sq_array = u->ring + p.sq_off.array;
	u->cq_head = u->ring + p.cq_off.head;
	u->cq_tail = u->ring + p.cq_off.tail;
	u->cq_mask = u->ring + p.cq_off.ring_mask;
	u->cqe = u->ring + p.cq_off.cqes;

	if (buf && syscall(__NR_io_uring_register, u->fd,
			   IORING_REGISTER_BUFFERS, &iov, 1))
		return -1;
	u->registered = buf;
	return 0;
}

/* Closing a ring releases its buffers only some time later, so do that first. */
static inline void uring_close(struct uring *u)
{
	if (u->registered)
		syscall(__NR_io_uring_register, u->fd,
			IORING_UNREGISTER_BUFFERS, NULL, 0);
	munmap(u->ring, u->ring_size);
	munmap(u->sqe, sizeof(*u->sqe));
	close(u->fd);
	memset(u, 0, sizeof(*u));
}

static inline bool uring_works(void)
{
	struct uring u;

	if (uring_open(&u, NULL, 0))
		return false;
	uring_close(&u);
	return true;
}

static inline ssize_t uring_submit(struct uring *u, int fd, bool write,
				   void *buf, size_t len)
{
	ssize_t res;

	*u->sqe = (struct io_uring_sqe) {
		.opcode = u->registered ?
			  write ? IORING_OP_WRITE_FIXED : IORING_OP_READ_FIXED :
			  write ? IORING_OP_WRITE : IORING_OP_READ,
		.fd = fd,
		.addr = (unsigned long)buf,
		.len = len,
	};
	u->sq_array[0] = 0;
	__atomic_store_n(u->sq_tail, *u->sq_tail + 1, __ATOMIC_RELEASE);
	if (syscall(__NR_io_uring_enter, u->fd, 1, 1, IORING_ENTER_GETEVENTS,
		    NULL, 0) != 1)
		return -1;
	if (__atomic_load_n(u->cq_tail, __ATOMIC_ACQUIRE) == *u->cq_head)
		return -1;

	res = u->cqe[*u->cq_head & *u->cq_mask].res;
	__atomic_store_n(u->cq_head, *u->cq_head + 1, __ATOMIC_RELEASE);
	return res;
}

static inline ssize_t __uring_rw(int fd, bool write, void *buf, size_t len,
				 bool registered)
{
	struct uring u;
	ssize_t res;

	if (uring_open(&u, registered ? buf : NULL, len))
		return -1;
	res = uring_submit(&u, fd, write, buf, len);
	uring_close(&u);
	return res;
}

static inline ssize_t uring_rw(int fd, bool write, void *buf, size_t len)
{
	return __uring_rw(fd, write, buf, len, false);
}

static inline ssize_t uring_fixed_rw(int fd, bool write, void *buf, size_t len)
{
	return __uring_rw(fd, write, buf, len, true);
}

/*
 * A long-term pin: by CONFIG_GUP_TEST, which a distribution's kernel does not have, or
 * by a buffer that is registered with io_uring.
 */

struct pin {
	int gup;	/* -1: by io_uring */
	struct uring ring;
	void *mem;
	size_t len;
};

static inline int pin_open(struct pin *p)
{
	memset(p, 0, sizeof(*p));
	p->gup = open("/sys/kernel/debug/gup_test", O_RDWR | O_CLOEXEC);
	return p->gup >= 0 || uring_works() ? 0 : -1;
}

static inline int pin_hold(struct pin *p, void *mem, size_t len)
{
	struct pin_longterm_test start = {
		.addr = (uintptr_t)mem,
		.size = len,
		.flags = PIN_LONGTERM_TEST_FLAG_USE_WRITE,
	};

	p->mem = mem;
	p->len = len;
	return p->gup >= 0 ? ioctl(p->gup, PIN_LONGTERM_TEST_START, &start) :
			     uring_open(&p->ring, mem, len);
}

/* What is in the pages, which need not be mapped any more */
static inline int pin_read(struct pin *p, void *copy)
{
	__u64 to = (uintptr_t)copy;
	ssize_t len = p->len;
	int fd, res = -1;

	if (p->gup >= 0)
		return ioctl(p->gup, PIN_LONGTERM_TEST_READ, &to);
	fd = memfd_create("pinned", MFD_CLOEXEC);
	if (fd < 0)
		return -1;
	if (uring_submit(&p->ring, fd, true, p->mem, p->len) == len &&
	    pread(fd, copy, len, 0) == len)
		res = 0;
	close(fd);
	return res;
}

static inline int pin_release(struct pin *p)
{
	if (p->gup >= 0)
		return ioctl(p->gup, PIN_LONGTERM_TEST_STOP);
	uring_close(&p->ring);
	return 0;
}

static inline void pin_close(struct pin *p)
{
	if (p->gup >= 0)
		close(p->gup);
	else if (p->ring.ring)
		uring_close(&p->ring);
}

#endif /* XEN_DIRECT_IO_H */
