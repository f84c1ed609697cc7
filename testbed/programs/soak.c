// SPDX-License-Identifier: GPL-2.0
/*
 * soak SECONDS SEED GUESTS: what testbed/suites/soak runs in dom0.
 *
 * A number of slots, each a process, grant pages to this domain. For each round
 * a slot starts a worker, which maps some of them, puts them to use and lets go
 * of them in one of many ways, or is killed meanwhile. What is still in use then
 * the slot holds for a while, checks and releases. All of them go on at the same
 * time, with guests that use their disks and are destroyed and created.
 *
 * Each slot draws from a sequence of its own, so that a seed gives each the same
 * rounds again; how they meet depends on the machine.
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <linux/sockios.h>

#include "xen_grant.h"
#include <xen/evtchn.h>
#include "direct_io.h"
#include "../../../../mm/gup_test.h"

/* The domain that it runs in, which grants to itself */
#define DOM0	0

#define RW		(PROT_READ | PROT_WRITE)
#define SLOTS		16
#define SLOT_PAGES	32
#define MAX_GUESTS	8
#define PIPE_PAGES	64
/* A socket takes all pages of a slot, and more. */
#define SOCKET_SIZE	(1024 * 1024)
/* The bytes that the ends of a vchan clear */
#define CLIENT_LIVE	20
#define SERVER_LIVE	21
#define PROGRESS_MS	5000
/* For all to be unmapped once everything is released */
#define END_MS		60000
/* For one step of a slot: on a busy machine a process waits long for a CPU. */
#define STEP_MS		60000
/* For a guest to come or go */
#define GUEST_MS	180000
#define GUEST_BAD_DATA	42
#define QUEUE		"/sys/kernel/debug/xen/grant_unmap/"
#define MODULE		"xen_gntdev"

/* Who holds the pages of a round */
enum holder {
	HOLD_NOT,
	HOLD_PIPE,
	HOLD_PIN,
	HOLD_RING,
	HOLD_WRITE,
	HOLD_READ,
	HOLD_TCP,
	HOLD_UNIX,
	NR_HOLDERS
};

/* How the worker lets go of them */
enum release {
	LET_MUNMAP,
	LET_PIECES,
	LET_MADVISE,
	LET_RACE,
	LET_REMOVE,
	LET_MAP_OVER,
	LET_EXIT,
	NR_RELEASES
};

static const char *const holder_names[] = {
	"nobody", "a pipe", "a long-term pin", "a registered buffer",
	"a direct write", "a direct read", "a TCP socket", "a UNIX socket",
};

/* One round, all drawn before the worker starts */
struct plan {
	enum holder holder;
	enum release release;
	unsigned int first, count;		/* the grants */
	unsigned int hold_first, hold_count;	/* of these */
	unsigned int kill_after_us;		/* 0: not at all */
	unsigned int hold_ms;
	bool rewrite;		/* the granting side changes held pages */
	bool wait;		/* until all is unmapped */
	bool clear_refs;	/* which takes nothing away */
	bool fail_first;	/* an mmap() that fails, and is tried again */
	bool vchan;		/* the worker has both ends of one, too */
	__u64 seed;		/* of the worker's own choices */
};

/* Shared by all processes */
struct shared {
	bool stop;
	bool failed;
	unsigned int rounds, kills, checked, lives, refused, vchans;
	unsigned int held[NR_HOLDERS];
	grant_ref_t ref[SLOTS][SLOT_PAGES];
	unsigned int live_slots;
};

/* What a worker tells its slot */
struct report {
	void *buffer;	/* that it has registered */
	bool done;	/* it has let go of what it will let go of before it ends */
	bool vchan;	/* both ends of its vchan are set up */
};

struct slot {
	unsigned int nr;
	__u64 rng;
	__u32 generation;
	struct grants grants;
	struct grants read_only;	/* a page */
	struct grant_table table;
	int pipe[2];
	int tcp[2], local[2];		/* to read, to write */
	int vchan_pipe[2];
	int client_gone, server_gone;	/* event channels of this round */
	__u32 client_port, server_port;
	int gup;
	struct uring ring;
	struct report *report;
	struct disk disk;
	struct dm_disk dm;
	char *copy;
};

static struct shared *shared;
static __u64 seed;

/* splitmix64 */
static __u64 draw(__u64 *rng)
{
	__u64 z = *rng += 0x9e3779b97f4a7c15ULL;

	z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9ULL;
	z = (z ^ z >> 27) * 0x94d049bb133111ebULL;
	return z ^ z >> 31;
}

static unsigned int draw_below(__u64 *rng, unsigned int n)
{
	return draw(rng) % n;
}

static __u64 sequence(unsigned int nr)
{
	__u64 rng = seed + nr * 0xd1342543de82ef95ULL;

	return draw(&rng);
}

/* Says what is wrong, once, and ends everything. */
__attribute__((format(printf, 1, 2)))
static void failed(const char *format, ...)
{
	va_list args;

	if (!__atomic_exchange_n(&shared->failed, true, __ATOMIC_SEQ_CST)) {
		fprintf(stderr, "soak: ");
		va_start(args, format);
		vfprintf(stderr, format, args);
		va_end(args);
		fprintf(stderr, "\n");
	}
	__atomic_store_n(&shared->stop, true, __ATOMIC_SEQ_CST);
}

/* The console's log tells then what the others wait for. */
#define hangs(format, ...)						\
do {									\
	bool __first = !shared->failed;					\
									\
	failed(format, ##__VA_ARGS__);					\
	if (__first)							\
		show_blocked();						\
} while (0)

static void show_blocked(void)
{
	int fd = open("/proc/sysrq-trigger", O_WRONLY | O_CLOEXEC);

	if (write(fd, "w", 1) != 1)
		perror("soak: /proc/sysrq-trigger");
	close(fd);
}

#define fail_in(slot, format, ...) \
	failed("slot %u: " format, (slot)->nr, ##__VA_ARGS__)

#define patiently(cond)						\
({								\
	__u64 __end = now_ms() + STEP_MS;			\
	bool __ok;						\
								\
	while (!(__ok = (cond)) && now_ms() < __end)		\
		usleep(1000);					\
	__ok;							\
})

#define count(what, n) __atomic_add_fetch(&shared->what, n, __ATOMIC_RELAXED)

static bool stopped(void)
{
	return __atomic_load_n(&shared->stop, __ATOMIC_RELAXED);
}

static void sleep_ms(unsigned int ms)
{
	__u64 end = now_ms() + ms;

	while (now_ms() < end && !stopped())
		usleep(ms < 10 ? ms * 1000 : 10000);
}

/* The worker: maps, has the pages held, lets go */

struct race {
	const struct slot *slot;
	char *mem;
	unsigned int count;
	__u64 rng;
	bool stop;
};

/* Looks pages up again and again while they go away. */
static void *race_lookups(void *arg)
{
	struct race *race = arg;

	while (!__atomic_load_n(&race->stop, __ATOMIC_RELAXED)) {
		unsigned int first = draw_below(&race->rng, race->count);
		struct iovec iov = {
			.iov_base = race->mem + first * PAGE_SIZE,
			.iov_len = (1 + draw_below(&race->rng, race->count - first)) * PAGE_SIZE,
		};

		vmsplice(race->slot->pipe[1], &iov, 1, SPLICE_F_NONBLOCK);
	}
	return NULL;
}

static void let_go_in_pieces(char *mem, unsigned int count, __u64 *rng, bool madvised)
{
	unsigned int i;

	for (i = 0; i < 6; i++) {
		unsigned int first = draw_below(rng, count);
		size_t len = (1 + draw_below(rng, count - first)) * PAGE_SIZE;

		if (madvised)
			madvise(mem + first * PAGE_SIZE, len, MADV_DONTNEED);
		else
			munmap(mem + first * PAGE_SIZE, len);
	}
}

/* Another process may have unloaded the module for a moment. */
static int gntdev_open(void)
{
	__u64 end = now_ms() + STEP_MS;
	int fd;

	do {
		fd = open("/dev/xen/gntdev", O_RDWR | O_CLOEXEC);
		if (fd >= 0 || (errno != ENOENT && errno != ENODEV && errno != ENXIO))
			break;
		usleep(10000);
	} while (now_ms() < end);
	return fd;
}

/* Make a socket hold the pages themselves. */
static bool hold_in_socket(int sock, void *mem, size_t left)
{
	struct iovec iov = { mem, left };
	int fds[2];
	ssize_t len;

	if (pipe(fds) || fcntl(fds[1], F_SETPIPE_SZ, PIPE_PAGES * PAGE_SIZE) < 0 ||
	    vmsplice(fds[1], &iov, 1, 0) != (ssize_t)left)
		return false;
	for (; left; left -= len) {
		len = splice(fds[0], NULL, sock, NULL, left, 0);
		if (len <= 0)
			return false;
	}
	close(fds[0]);
	close(fds[1]);
	return true;
}

static int port_connect(int fd, __u32 port)
{
	struct ioctl_evtchn_bind_interdomain op = {
		.remote_domain = DOM0, .remote_port = port,
	};

	return ioctl(fd, IOCTL_EVTCHN_BIND_INTERDOMAIN, &op);
}

/* Both ends of a vchan, each of which tells when it is gone. */
static const char *worker_vchan(const struct slot *s, int gntdev)
{
	struct ioctl_gntalloc_unmap_notify server = {
		.action = UNMAP_NOTIFY_CLEAR_BYTE | UNMAP_NOTIFY_SEND_EVENT,
	};
	struct ioctl_gntdev_unmap_notify client = {
		.action = UNMAP_NOTIFY_CLEAR_BYTE | UNMAP_NOTIFY_SEND_EVENT,
	};
	int evtchn = open("/dev/xen/evtchn", O_RDWR | O_CLOEXEC);
	int server_port = port_connect(evtchn, s->server_port);
	int client_port = port_connect(evtchn, s->client_port);
	struct grants grants;
	__s64 index;
	char *mem;

	if (server_port < 0 || client_port < 0)
		return "connect event channels";
	if (grants_open(&grants, 1, DOM0, GNTALLOC_FLAG_WRITABLE))
		return "grant a page";
	fill_page(grants.mem, s->nr);
	grants.mem[CLIENT_LIVE] = grants.mem[SERVER_LIVE] = 1;
	index = gntdev_add(gntdev, DOM0, grants.ref, 1);
	mem = index < 0 ? MAP_FAILED : mmap(NULL, PAGE_SIZE, RW, MAP_SHARED, gntdev, index);
	if (mem == MAP_FAILED || !hold(s->vchan_pipe, mem, 1))
		return "map the page of a vchan";
	server.index = grants.index + SERVER_LIVE;
	server.event_channel_port = server_port;
	client.index = index + CLIENT_LIVE;
	client.event_channel_port = client_port;
	if (ioctl(grants.fd, IOCTL_GNTALLOC_SET_UNMAP_NOTIFY, &server) ||
	    ioctl(gntdev, IOCTL_GNTDEV_SET_UNMAP_NOTIFY, &client))
		return "ask to be notified";
	__atomic_store_n(&s->report->vchan, true, __ATOMIC_RELEASE);
	/* They go with the process, or the client's end now. */
	if (s->generation & 1 && (munmap(mem, PAGE_SIZE) || gntdev_remove(gntdev, index, 1)))
		return "munmap a vchan";
	return NULL;
}

/* A page of two can only be read: to map both for writing fails. */
static const char *worker_fail_first(const struct slot *s, const struct plan *p, int gntdev)
{
	grant_ref_t ref[2] = { s->grants.ref[p->first], s->read_only.ref[0] };
	__s64 index = gntdev_add(gntdev, DOM0, ref, 2);
	char *mem;

	if (index < 0)
		return "map grants";
	if (mmap(NULL, 2 * PAGE_SIZE, RW, MAP_SHARED, gntdev, index) != MAP_FAILED || errno != EINVAL)
		return "fail to mmap a read-only grant";
	mem = mmap(NULL, 2 * PAGE_SIZE, PROT_READ, MAP_SHARED, gntdev, index);
	if (mem == MAP_FAILED)
		return "mmap after a failure";
	if (memcmp(mem, s->grants.mem + p->first * PAGE_SIZE, PAGE_SIZE) ||
	    memcmp(mem + PAGE_SIZE, s->read_only.mem, PAGE_SIZE))
		return "find in the second mapping what was granted";
	/* It goes with the process, or now. */
	if (p->seed & 2 && munmap(mem, 2 * PAGE_SIZE))
		return "munmap of the second mapping";
	return NULL;
}

static bool clear_soft_dirty(void)
{
	int fd = open("/proc/self/clear_refs", O_WRONLY | O_CLOEXEC);
	bool ok = write(fd, "4", 1) == 1;

	close(fd);
	return ok;
}

/* Another mapping of the same grants takes the place of some pages. */
static const char *map_over(const struct slot *s, const struct plan *p, char *mem, int gntdev,
			    __u64 *rng)
{
	unsigned int i, first = draw_below(rng, p->count);
	unsigned int count = 1 + draw_below(rng, p->count - first);
	char *at = mem + first * PAGE_SIZE;
	__s64 index = gntdev_add(gntdev, DOM0, s->grants.ref + p->first + first, count);

	if (index < 0)
		return "map grants";
	if (mmap(at, count * PAGE_SIZE, RW, MAP_SHARED | MAP_FIXED, gntdev, index) != at)
		return "mmap over a mapping";
	for (i = 0; i < p->count; i++)
		if (memcmp(mem + i * PAGE_SIZE,
			   s->grants.mem + (p->first + i) * PAGE_SIZE, PAGE_SIZE))
			return "find under and beside the new mapping what was granted";
	return NULL;
}

/* Returns what could not be done, or NULL. */
static const char *worker_hold(const struct slot *s, const struct plan *p, char *mem)
{
	struct iovec iov = {
		.iov_base = mem + p->hold_first * PAGE_SIZE,
		.iov_len = p->hold_count * PAGE_SIZE,
	};
	struct pin_longterm_test pin = {
		.addr = (uintptr_t)iov.iov_base,
		.size = iov.iov_len,
		.flags = PIN_LONGTERM_TEST_FLAG_USE_WRITE |
			 (p->seed & 1 ? PIN_LONGTERM_TEST_FLAG_USE_FAST : 0),
	};
	aio_context_t ctx = 0;

	switch (p->holder) {
	case HOLD_PIPE:
		if (vmsplice(s->pipe[1], &iov, 1, SPLICE_F_NONBLOCK) != (ssize_t)iov.iov_len)
			return "vmsplice";
		break;
	case HOLD_PIN:
		if (ioctl(s->gup, PIN_LONGTERM_TEST_START, &pin))
			return "long-term pin";
		break;
	case HOLD_RING:
		s->report->buffer = iov.iov_base;
		if (syscall(__NR_io_uring_register, s->ring.fd, IORING_REGISTER_BUFFERS, &iov, 1))
			return "io_uring_register";
		break;
	case HOLD_WRITE:
	case HOLD_READ:
		if (aio_start(&ctx, s->dm.fd, p->holder == HOLD_WRITE, iov.iov_base, iov.iov_len))
			return "io_submit";
		break;
	case HOLD_TCP:
	case HOLD_UNIX:
		if (!hold_in_socket(p->holder == HOLD_TCP ? s->tcp[1] : s->local[1],
				    iov.iov_base, iov.iov_len))
			return "splice to a socket";
		break;
	default:
		break;
	}
	return NULL;
}

static const char *worker_run(const struct slot *s, const struct plan *p)
{
	size_t size = p->count * PAGE_SIZE;
	struct race race = { .slot = s, .count = p->count, .rng = ~p->seed };
	const char *error;
	pthread_t thread;
	__u64 rng = p->seed;
	unsigned int i;
	__s64 index;
	int fd;

	fd = gntdev_open();
	if (fd < 0)
		return "open gntdev";
	index = gntdev_add(fd, DOM0, s->grants.ref + p->first, p->count);
	if (index < 0)
		return "map grants";
	race.mem = mmap(NULL, size, RW, MAP_SHARED, fd, index);
	if (race.mem == MAP_FAILED)
		return "mmap";
	for (i = 0; i < p->count; i++)
		if (memcmp(race.mem + i * PAGE_SIZE,
			   s->grants.mem + (p->first + i) * PAGE_SIZE, PAGE_SIZE))
			return "find in the mapping what was granted";
	error = worker_hold(s, p, race.mem);
	if (!error && p->vchan)
		error = worker_vchan(s, fd);
	if (!error && p->fail_first)
		error = worker_fail_first(s, p, fd);
	if (!error && p->clear_refs && !clear_soft_dirty())
		error = "clear soft-dirty bits";
	if (error)
		return error;

	switch (p->release) {
	case LET_MUNMAP:
		if (munmap(race.mem, size))
			return "munmap";
		break;
	case LET_PIECES:
	case LET_MADVISE:
		let_go_in_pieces(race.mem, p->count, &rng, p->release == LET_MADVISE);
		/* What is left goes with the process, or now. */
		if (draw_below(&rng, 2) && munmap(race.mem, size))
			return "munmap of the rest";
		break;
	case LET_RACE:
		if (pthread_create(&thread, NULL, race_lookups, &race))
			return "pthread_create";
		usleep(draw_below(&rng, 3000));
		let_go_in_pieces(race.mem, p->count, &rng, draw_below(&rng, 2));
		usleep(draw_below(&rng, 1000));
		__atomic_store_n(&race.stop, true, __ATOMIC_RELAXED);
		pthread_join(thread, NULL);
		break;
	case LET_MAP_OVER:
		for (i = 0; i < 3 && !error; i++)
			error = map_over(s, p, race.mem, fd, &rng);
		if (error)
			return error;
		if (draw_below(&rng, 2) && munmap(race.mem, size))
			return "munmap of several mappings";
		break;
	case LET_REMOVE:
		if (gntdev_remove(fd, index, p->count))
			return "unmap grants";
		if (munmap(race.mem, size))
			return "munmap";
		if (draw_below(&rng, 2))
			close(fd);
		break;
	default:
		break;
	}
	return NULL;
}

static pid_t worker_start(const struct slot *s, const struct plan *p)
{
	const char *error;
	pid_t pid = fork();

	if (pid < 0)
		fail_in(s, "cannot fork: %s", strerror(errno));
	if (pid)
		return pid;
	error = worker_run(s, p);
	if (error)
		fail_in(s, "a worker cannot %s: %s", error, strerror(errno));
	__atomic_store_n(&s->report->done, true, __ATOMIC_RELEASE);
	_exit(!!error);
}

/* The slot: holds the pages, checks them, releases them */

static char *granted(const struct slot *s, unsigned int i)
{
	return s->grants.mem + i * PAGE_SIZE;
}

static __u32 stamp(const struct slot *s, unsigned int i)
{
	return s->generation * 1000 + s->nr * SLOT_PAGES + i;
}

static void fill_all(struct slot *s)
{
	unsigned int i;

	s->generation++;
	for (i = 0; i < SLOT_PAGES; i++)
		fill_page(granted(s, i), stamp(s, i));
}

/* A page that was held is one of this slot's pages, still granted and mapped. */
static bool check_page(const struct slot *s, const struct plan *p, const char *copy,
		       const bool *mapped)
{
	unsigned int i;

	for (i = p->first; i < p->first + p->count; i++)
		if (page_holds(copy, stamp(s, i)))
			break;
	if (i == p->first + p->count) {
		fail_in(s, "a page that %s held has wrong data", holder_names[p->holder]);
		return false;
	}
	if (!mapped[i]) {
		fail_in(s, "grant %u was unmapped while %s held its page",
			s->grants.ref[i], holder_names[p->holder]);
		return false;
	}
	count(checked, 1);
	return true;
}

/* Pages in a row, the first of which is the first that was to be held */
static bool check_pages(const struct slot *s, const struct plan *p, const char *copy,
			const bool *mapped)
{
	unsigned int i;

	for (i = 0; i < p->hold_count; i++) {
		unsigned int page = p->first + p->hold_first + i;

		if (!page_holds(copy + i * PAGE_SIZE, stamp(s, page))) {
			fail_in(s, "page %u that %s held has wrong data", page,
				holder_names[p->holder]);
			return false;
		}
		if (!mapped[page]) {
			fail_in(s, "grant %u was unmapped while %s held its page",
				s->grants.ref[page], holder_names[p->holder]);
			return false;
		}
	}
	count(checked, p->hold_count);
	count(held[p->holder], p->hold_count);
	return true;
}

static void release_pipe(struct slot *s, const struct plan *p, const bool *mapped)
{
	int left = 0;

	ioctl(s->pipe[0], FIONREAD, &left);
	if (!p->kill_after_us && p->holder == HOLD_PIPE && left < (int)(p->hold_count * PAGE_SIZE))
		fail_in(s, "%d bytes are in the pipe, not %u pages", left, p->hold_count);
	count(held[HOLD_PIPE], left / PAGE_SIZE);
	for (; left > 0; left -= PAGE_SIZE) {
		if (read(s->pipe[0], s->copy, PAGE_SIZE) != PAGE_SIZE) {
			fail_in(s, "cannot read a page from the pipe");
			return;
		}
		if (!check_page(s, p, s->copy, mapped))
			return;
	}
}

static void release_socket(struct slot *s, const struct plan *p, const bool *mapped)
{
	int fd = p->holder == HOLD_TCP ? s->tcp[0] : s->local[0];
	int left = 0, all = p->hold_count * PAGE_SIZE;

	/* What a killed worker has sent may be less, but nothing comes later. */
	if (p->holder == HOLD_TCP && !patiently(!ioctl(s->tcp[1], SIOCOUTQ, &left) && !left))
		fail_in(s, "%d bytes are not acknowledged", left);
	if (!p->kill_after_us && !patiently(!ioctl(fd, FIONREAD, &left) && left == all))
		fail_in(s, "%d bytes are in the socket, not %d", left, all);
	for (;;) {
		struct pollfd poll_fd = { .fd = fd, .events = POLLIN };

		if (poll(&poll_fd, 1, 0) != 1)
			break;
		if (recv(fd, s->copy, PAGE_SIZE, MSG_WAITALL) != PAGE_SIZE) {
			fail_in(s, "cannot read a page from the socket");
			return;
		}
		count(held[p->holder], 1);
		if (!check_page(s, p, s->copy, mapped))
			return;
	}
}

/* The worker has ended: both ends of its vchan are gone, but for a held page. */
static void check_vchan(struct slot *s)
{
	int left = 0;

	if (s->report->vchan) {
		if (!event_came(s->client_gone, STEP_MS) ||
		    !event_came(s->server_gone, STEP_MS))
			hangs("slot %u: an end of a vchan has not told that it is gone", s->nr);
		count(vchans, 1);
	}
	ioctl(s->vchan_pipe[0], FIONREAD, &left);
	if (left) {
		if (!drain(s->vchan_pipe, s->copy))
			fail_in(s, "cannot read the page of a vchan");
		else if (s->report->vchan && (s->copy[CLIENT_LIVE] || s->copy[SERVER_LIVE]))
			fail_in(s, "a byte of a vchan is not cleared");
	} else if (s->report->vchan) {
		fail_in(s, "the page of a vchan is not in the pipe");
	}
	close(s->client_gone);
	close(s->server_gone);
}

static bool prepare_vchan(struct slot *s)
{
	struct ioctl_evtchn_bind_unbound_port op = { .remote_domain = DOM0 };
	int client, server;

	s->client_gone = open("/dev/xen/evtchn", O_RDWR | O_CLOEXEC);
	s->server_gone = open("/dev/xen/evtchn", O_RDWR | O_CLOEXEC);
	client = ioctl(s->client_gone, IOCTL_EVTCHN_BIND_UNBOUND_PORT, &op);
	server = ioctl(s->server_gone, IOCTL_EVTCHN_BIND_UNBOUND_PORT, &op);
	s->client_port = client;
	s->server_port = server;
	return client >= 0 && server >= 0;
}

static void release_pin(struct slot *s, const struct plan *p, const bool *mapped)
{
	__u64 to = (uintptr_t)s->copy;
	unsigned int i;

	memset(s->copy, 0, p->hold_count * PAGE_SIZE);
	if (ioctl(s->gup, PIN_LONGTERM_TEST_READ, &to)) {
		if (!p->kill_after_us)
			fail_in(s, "nothing is pinned");
	} else {
		/* Killed half way: each page that is pinned is copied. */
		for (i = 0; p->kill_after_us && i < PAGE_SIZE; i++)
			if (s->copy[(p->hold_count - 1) * PAGE_SIZE + i])
				break;
		if (!p->kill_after_us || i < PAGE_SIZE)
			check_pages(s, p, s->copy, mapped);
	}
	if (ioctl(s->gup, PIN_LONGTERM_TEST_STOP))
		fail_in(s, "cannot unpin");
}

static void release_ring(struct slot *s, const struct plan *p, const bool *mapped)
{
	size_t len = p->hold_count * PAGE_SIZE;
	ssize_t ret;

	s->ring.registered = true;
	ret = uring_submit(&s->ring, s->disk.memfd, true, s->report->buffer, len);
	if (ret == (ssize_t)len) {
		if (pread(s->disk.memfd, s->copy, len, 0) != (ssize_t)len)
			fail_in(s, "cannot read what a registered buffer has written");
		else
			check_pages(s, p, s->copy, mapped);
	} else if (ret != -EFAULT || !p->kill_after_us) {
		fail_in(s, "a registered buffer cannot be written: %zd", ret);
	}
	s->ring.registered = false;
	if (syscall(__NR_io_uring_register, s->ring.fd, IORING_UNREGISTER_BUFFERS, NULL, 0) &&
	    !p->kill_after_us)
		fail_in(s, "cannot unregister a buffer");
}

/* Direct I/O has ended, as the worker has. */
static void check_direct(struct slot *s, const struct plan *p, const bool *mapped)
{
	size_t len = p->hold_count * PAGE_SIZE;
	unsigned int i;

	if (p->holder == HOLD_WRITE) {
		if (pread(s->disk.memfd, s->copy, len, 0) != (ssize_t)len)
			fail_in(s, "cannot read the disk");
		else
			check_pages(s, p, s->copy, mapped);
		return;
	}
	for (i = 0; i < p->hold_count; i++)
		if (!page_holds(granted(s, p->first + p->hold_first + i), ~i)) {
			fail_in(s, "a direct read has not reached page %u",
				p->first + p->hold_first + i);
			return;
		}
	count(checked, p->hold_count);
	count(held[HOLD_READ], p->hold_count);
	fill_all(s);
}

static struct plan make_plan(struct slot *s)
{
	static const unsigned char holders[] = {
		HOLD_NOT, HOLD_PIPE, HOLD_PIPE, HOLD_PIPE, HOLD_RING, HOLD_RING,
		HOLD_WRITE, HOLD_READ, HOLD_PIN, HOLD_PIN, HOLD_TCP, HOLD_TCP,
		HOLD_UNIX, HOLD_UNIX,
	};
	/* How long: mostly short, at times long */
	static const unsigned int hold_ms[] = { 1, 10, 30, 100, 100, 300, 1000, 3000 };
	struct plan p = { };

	p.seed = draw(&s->rng);
	p.holder = holders[draw_below(&s->rng, sizeof(holders))];
	/* All pins are one in the kernel: they are slot 0's. */
	if ((p.holder == HOLD_PIN) != (s->nr == 0))
		p.holder = s->nr ? HOLD_PIPE : HOLD_PIN;
	p.release = draw_below(&s->rng, NR_RELEASES);
	p.count = 1 + draw_below(&s->rng, SLOT_PAGES);
	p.first = draw_below(&s->rng, SLOT_PAGES - p.count + 1);
	p.hold_count = 1 + draw_below(&s->rng, p.count);
	p.hold_first = draw_below(&s->rng, p.count - p.hold_count + 1);
	p.hold_ms = draw_below(&s->rng, hold_ms[draw_below(&s->rng, ARRAY_SIZE(hold_ms))]);
	if (!draw_below(&s->rng, 4))
		p.kill_after_us = 1 + draw_below(&s->rng, 20000);
	p.rewrite = draw_below(&s->rng, 2);
	p.wait = draw_below(&s->rng, 2);
	p.clear_refs = !draw_below(&s->rng, 4);
	p.fail_first = !draw_below(&s->rng, 4);
	p.vchan = !draw_below(&s->rng, 4);
	if (p.holder == HOLD_WRITE || p.holder == HOLD_READ) {
		/* A process cannot end before its I/O has, so let go first. */
		p.release = LET_MUNMAP;
		p.kill_after_us = 0;
		/* It would overwrite what is read. */
		p.rewrite &= p.holder == HOLD_WRITE;
	}
	return p;
}

static bool all_unmapped(const struct slot *s)
{
	unsigned int i;

	for (i = 0; i < SLOT_PAGES; i++)
		if (grant_mapped(&s->table, s->grants.ref[i]))
			return false;
	return true;
}

static bool prepare_direct(struct slot *s, const struct plan *p)
{
	unsigned int i;

	for (i = 0; p->holder == HOLD_READ && i < p->hold_count; i++) {
		fill_page(s->copy, ~i);
		if (pwrite(s->disk.memfd, s->copy, PAGE_SIZE, i * PAGE_SIZE) != PAGE_SIZE)
			return false;
	}
	return !dm_suspend(&s->dm);
}

static void reap(struct slot *s, pid_t pid)
{
	int status;

	if (waitpid(pid, &status, 0) != pid)
		fail_in(s, "waitpid: %s", strerror(errno));
	else if (WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL)
		count(kills, 1);
	else if (status)
		fail_in(s, "a worker ended with status %#x", status);
}

/* Until the worker has let go of its pages, or is no more */
static bool worker_done(struct slot *s, const struct plan *p, pid_t pid)
{
	if (p->kill_after_us) {
		usleep(p->kill_after_us);
		kill(pid, SIGKILL);
		reap(s, pid);
		return true;
	}
	if (patiently(__atomic_load_n(&s->report->done, __ATOMIC_ACQUIRE) || shared->failed))
		return true;
	hangs("slot %u: a worker has not let go of pages, in the way %u, that %s holds, within %u s",
	      s->nr, p->release, holder_names[p->holder], STEP_MS / 1000);
	return false;
}

static void slot_round(struct slot *s)
{
	struct plan p = make_plan(s);
	bool direct = p.holder == HOLD_WRITE || p.holder == HOLD_READ;
	bool mapped[SLOT_PAGES];
	unsigned int i;
	pid_t pid;

	if (direct && !prepare_direct(s, &p)) {
		fail_in(s, "cannot suspend the disk: %s", strerror(errno));
		return;
	}
	if (p.vchan && !prepare_vchan(s)) {
		fail_in(s, "cannot open event channels: %s", strerror(errno));
		return;
	}
	s->report->done = false;
	s->report->vchan = false;
	pid = worker_start(s, &p);
	if (pid < 0 || !worker_done(s, &p, pid))
		return;

	if (p.rewrite)
		fill_all(s);
	sleep_ms(p.hold_ms);
	for (i = 0; i < SLOT_PAGES; i++)
		mapped[i] = grant_mapped(&s->table, s->grants.ref[i]);
	if (direct) {
		if (dm_resume(&s->dm))
			fail_in(s, "cannot resume the disk: %s", strerror(errno));
		/* Its end waits for its I/O. */
		reap(s, pid);
		check_direct(s, &p, mapped);
	}
	if (p.holder == HOLD_PIN)
		release_pin(s, &p, mapped);
	if (p.holder == HOLD_RING)
		release_ring(s, &p, mapped);
	if (p.holder == HOLD_TCP || p.holder == HOLD_UNIX)
		release_socket(s, &p, mapped);
	/* Races fill it, too. */
	release_pipe(s, &p, mapped);
	if (!direct && !p.kill_after_us)
		reap(s, pid);
	if (p.vchan)
		check_vchan(s);
	if (p.wait && !patiently(all_unmapped(s)))
		hangs("slot %u: grants are still mapped %u s after %s has let go of their pages",
		      s->nr, STEP_MS / 1000, holder_names[p.holder]);
	count(rounds, 1);
}

static bool tcp_open(int *fds)
{
	struct sockaddr_in addr = {
		.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK),
	};
	int sock = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), size = SOCKET_SIZE;
	socklen_t len = sizeof(addr);

	fds[1] = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (bind(sock, (struct sockaddr *)&addr, len) ||
	    getsockname(sock, (struct sockaddr *)&addr, &len) || listen(sock, 1) ||
	    setsockopt(sock, SOL_SOCKET, SO_RCVBUFFORCE, &size, sizeof(size)) ||
	    setsockopt(fds[1], SOL_SOCKET, SO_SNDBUFFORCE, &size, sizeof(size)) ||
	    connect(fds[1], (struct sockaddr *)&addr, len))
		return false;
	fds[0] = accept(sock, NULL, NULL);
	close(sock);
	return fds[0] >= 0;
}

static bool sockets_open(struct slot *s)
{
	int size = SOCKET_SIZE;

	return tcp_open(s->tcp) && !socketpair(AF_UNIX, SOCK_STREAM, 0, s->local) &&
	       !setsockopt(s->local[1], SOL_SOCKET, SO_SNDBUFFORCE, &size, sizeof(size));
}

static bool slot_set_up(struct slot *s)
{
	if (grants_open(&s->grants, SLOT_PAGES, DOM0, GNTALLOC_FLAG_WRITABLE) ||
	    grants_open(&s->read_only, 1, DOM0, 0) || pipe(s->vchan_pipe) || !sockets_open(s) ||
	    grant_table_open(&s->table) ||
	    pipe(s->pipe) || fcntl(s->pipe[1], F_SETPIPE_SZ, PIPE_PAGES * PAGE_SIZE) < 0 ||
	    uring_open(&s->ring, NULL, 0) || disk_open(&s->disk) || dm_open(&s->dm, &s->disk))
		return false;
	/* There is one set of pins for all: whoever closes the file drops it. */
	s->gup = s->nr ? -1 : open("/sys/kernel/debug/gup_test", O_RDWR | O_CLOEXEC);
	if (s->gup < 0 && !s->nr)
		return false;
	s->copy = malloc(SLOT_PAGES * PAGE_SIZE);
	s->report = mmap(NULL, PAGE_SIZE, RW, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	memcpy(shared->ref[s->nr], s->grants.ref, sizeof(shared->ref[0]));
	fill_all(s);
	return s->copy && s->report != MAP_FAILED;
}

static void slot_run(unsigned int nr)
{
	struct slot s = { .nr = nr, .rng = sequence(nr) };

	if (!slot_set_up(&s)) {
		fail_in(&s, "cannot be set up: %s", strerror(errno));
		return;
	}
	while (!stopped())
		slot_round(&s);
	dm_close(&s.dm);
	disk_close(&s.disk);
	uring_close(&s.ring);
	close(s.pipe[0]);
	close(s.pipe[1]);
	close(s.vchan_pipe[0]);
	close(s.vchan_pipe[1]);
	close(s.tcp[0]);
	close(s.tcp[1]);
	close(s.local[0]);
	close(s.local[1]);
	if (!patiently(all_unmapped(&s)))
		fail_in(&s, "grants are still mapped at the end");
	grants_close(&s.grants);
	grants_close(&s.read_only);
}

/* Guests */

/* Runs it with its output dropped. Returns its process. */
static pid_t start(char *const *argv)
{
	pid_t pid = fork();

	if (pid)
		return pid;
	/* What it starts in the background must not keep the slots' files. */
	if (freopen("/dev/null", "r", stdin) && freopen("/dev/null", "w", stdout) &&
	    freopen("/dev/console", "w", stderr))
		execvp(argv[0], argv);
	_exit(127);
}

#define START(...) start((char *[]){ __VA_ARGS__, NULL })

/* Returns its exit code, 128 and more when a signal or time ended it. */
static int finish(pid_t pid, unsigned int ms)
{
	__u64 end = now_ms() + ms;
	int status;

	while (!waitpid(pid, &status, WNOHANG)) {
		if (now_ms() >= end) {
			kill(pid, SIGKILL);
			waitpid(pid, &status, 0);
			return 255;
		}
		usleep(20000);
	}
	return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

#define RUN(...) finish(START(__VA_ARGS__), GUEST_MS)

static int domid(const char *name)
{
	char command[64];
	int id = -1;
	FILE *out;

	snprintf(command, sizeof(command), "xl domid %s 2>/dev/null", name);
	out = popen(command, "r");
	if (!out)
		return -1;
	if (fscanf(out, "%d", &id) != 1)
		id = -1;
	pclose(out);
	return id;
}

/* Until a path is in xenstore, or is not */
static bool wait_store(const char *path, bool there)
{
	__u64 end = now_ms() + GUEST_MS;

	while (!RUN("xenstore-exists", (char *)path) != there) {
		if (now_ms() >= end)
			return false;
		usleep(100000);
	}
	return true;
}

/* What a guest does with its disk; it looks at what it has read. */
static const char guest_io[] =
	"dd if=/dev/urandom of=/tmp/data bs=64k count=24 2>/dev/null || exit 1\n"
	"while :; do\n"
	"	dd if=/tmp/data of=/dev/xvda bs=64k conv=fsync 2>/dev/null || exit 1\n"
	"	echo 3 >/proc/sys/vm/drop_caches\n"
	"	dd if=/dev/xvda bs=64k count=24 2>/dev/null | cmp -s /tmp/data - || exit 42\n"
	"done\n";

static bool guest_gone(int id)
{
	char path[64];

	snprintf(path, sizeof(path), "/local/domain/%d/vm", id);
	if (!wait_store(path, false))
		return false;
	snprintf(path, sizeof(path), "/local/domain/0/backend/vbd/%d", id);
	return wait_store(path, false);
}

/* One life of a guest, from when it is up to when it is gone */
static bool guest_life(const char *nr, const char *name, __u64 *rng)
{
	int id = domid(name), code;
	pid_t io, reboot = -1;

	if (id < 0) {
		failed("%s is not there", name);
		return false;
	}
	io = START("guest", (char *)nr, "sh", "-c", (char *)guest_io);
	sleep_ms(1000 + draw_below(rng, 6000));
	if (draw_below(rng, 3) && !stopped())
		reboot = START("guest", (char *)nr, "reboot", "-f");
	else
		/* libxl complains when a device takes longer than 10 s to go. */
		RUN("xl", "destroy", (char *)name);
	if (!guest_gone(id))
		hangs("%s, domain %d, does not go", name, id);
	if (reboot > 0)
		finish(reboot, 0);
	code = finish(io, 0);
	if (code == GUEST_BAD_DATA)
		failed("%s has read something else than it has written", name);
	else if (code == 1 && reboot < 0)
		failed("%s cannot use its disk", name);
	count(lives, 1);
	return !stopped();
}

static bool guest_create(const char *nr, const char *name)
{
	unsigned int tries = 3;
	char path[64];

	snprintf(path, sizeof(path), "/etc/xen/%s", name);
	/* libxl gives up when a device takes longer than 10 s to come. */
	while (tries && RUN("xl", "create", path))
		tries--;
	if (!tries) {
		failed("xl create %s has failed", name);
		return false;
	}
	snprintf(path, sizeof(path), "/local/domain/%d/data/ready", domid(name));
	if (!wait_store(path, true)) {
		hangs("%s does not come up", name);
		return false;
	}
	return true;
}

static void guest_run(unsigned int nr)
{
	__u64 rng = sequence(SLOTS + nr);
	char number[16], name[32];

	snprintf(number, sizeof(number), "%u", nr);
	snprintf(name, sizeof(name), "guest%u", nr);
	while (guest_life(number, name, &rng) && guest_create(number, name))
		;
}

/* The queue, as debugfs shows it */

static long counter(const char *name)
{
	FILE *file = fopen(QUEUE "stats", "r");
	char key[32];
	long value;

	if (!file)
		return -1;
	while (fscanf(file, "%31s %ld", key, &value) == 2)
		if (!strcmp(key, name)) {
			fclose(file);
			return value;
		}
	fclose(file);
	return -1;
}

/* Returns the number of pages that wait, -1 if the file is not as it must be. */
static int pending(char *line, size_t size)
{
	static const char header[] = "age_ms owner domid gref pfn references\n";
	FILE *file = fopen(QUEUE "pending", "r");
	unsigned int age, id, ref;
	unsigned long pfn;
	char owner[64];
	int refs, n;

	if (!file)
		return -1;
	n = fgets(line, size, file) && !strcmp(line, header) ? 0 : -1;
	while (n >= 0 && fgets(line, size, file)) {
		n++;
		if (sscanf(line, "%u %63s %u %u %lx %d\n", &age, owner, &id, &ref, &pfn, &refs) != 6 ||
		    (strncmp(owner, "gntdev/", 7) && strncmp(owner, "blkback/", 8)))
			n = -1;
	}
	fclose(file);
	return n;
}

/* The module is in use all the time: it must not go. */
static void try_to_unload(void)
{
	if (!syscall(__NR_delete_module, MODULE, O_NONBLOCK)) {
		int fd = open("/lib/modules/xen-gntdev.ko", O_RDONLY | O_CLOEXEC);

		/* Between two rounds of all slots it may. */
		if (fd < 0 || syscall(__NR_finit_module, fd, "", 0))
			failed("gntdev cannot be loaded again: %s", strerror(errno));
		close(fd);
	} else if (errno == EAGAIN || errno == EBUSY) {
		count(refused, 1);
	} else if (errno != ENOENT) {
		failed("unloading gntdev: %s", strerror(errno));
	}
}

static void watch(unsigned int seconds)
{
	__u64 begin = now_ms(), end = begin + seconds * 1000ULL, next = begin + PROGRESS_MS;
	int most = 0, waiting;
	char line[256];

	while (now_ms() < end && !stopped()) {
		usleep(200000);
		waiting = pending(line, sizeof(line));
		if (waiting < 0)
			failed("unexpected line in %spending: %s", QUEUE, line);
		if (waiting > most)
			most = waiting;
		if (now_ms() < next)
			continue;
		next += PROGRESS_MS;
		try_to_unload();
		printf("%llu s: %u rounds, %u pages checked, %ld deferred, %d pending (most: %d), %u workers killed, %u guests gone\n",
		       (now_ms() - begin) / 1000, shared->rounds, shared->checked,
		       counter("deferred"), waiting, most, shared->kills, shared->lives);
		fflush(stdout);
	}
	__atomic_store_n(&shared->stop, true, __ATOMIC_SEQ_CST);
}

/* Everything was let go of: nothing may be left. */

static unsigned int not_revoked(const struct grant_table *t)
{
	unsigned int slot, i, n = 0;

	for (slot = 0; slot < SLOTS; slot++)
		for (i = 0; i < SLOT_PAGES; i++)
			n += !!grant_flags(t, shared->ref[slot][i]);
	return n;
}

static bool wait_until(__u64 end, bool ready)
{
	if (!ready)
		usleep(10000);
	return ready || now_ms() >= end;
}

/* A domain that has gone, but for pages that someone maps, has no name. */
static unsigned int zombies(void)
{
	unsigned int n = 0;
	char line[256];
	FILE *out;

	out = popen("xl list", "r");
	if (!out)
		return 0;
	while (fgets(line, sizeof(line), out))
		n += strncmp(line, "Name ", 5) && strncmp(line, "Domain-0 ", 9);
	pclose(out);
	return n;
}

static void check_end(unsigned int before, long module_before, unsigned int guests)
{
	__u64 end = now_ms() + END_MS;
	struct grant_table table = { };
	unsigned int i, holders = 0;
	char line[256];

	if (grant_table_open(&table)) {
		failed("cannot map the grant table");
		return;
	}
	while (!wait_until(end, !pending(line, sizeof(line))))
		;
	if (pending(line, sizeof(line)))
		failed("%d pages are still pending, the last: %s", pending(line, sizeof(line)), line);
	while (!wait_until(end, grants_mapped(&table) <= before))
		;
	if (grants_mapped(&table) > before)
		failed("%u grants of dom0 are still mapped", grants_mapped(&table) - before);
	/* gntalloc looks every second which grants it can revoke. */
	while (!wait_until(end, !not_revoked(&table)))
		;
	if (not_revoked(&table))
		failed("%u grants of dom0 are not revoked", not_revoked(&table));
	while (guests && !wait_until(end, !zombies()))
		;
	if (guests && zombies())
		failed("%u domains are left", zombies());
	if (counter("failed") || counter("leaked"))
		failed("%ld pages failed, %ld leaked", counter("failed"), counter("leaked"));
	if (counter("deferred") != counter("unmapped"))
		failed("%ld pages were deferred, but %ld unmapped", counter("deferred"), counter("unmapped"));
	if (read_number("/sys/module/" MODULE "/refcnt") > module_before)
		failed("gntdev has %ld users, %ld at the start",
		       read_number("/sys/module/" MODULE "/refcnt"), module_before);
	/* Else it has tested nothing. */
	if (counter("deferred") <= 0 || !shared->checked || !shared->rounds)
		failed("no page was deferred");
	for (i = HOLD_PIPE; i < NR_HOLDERS; i++)
		holders += !!shared->held[i];
	if (holders < NR_HOLDERS - 1)
		failed("only %u of %u kinds of holders have held a page", holders, NR_HOLDERS - 1);
	if (!shared->kills)
		failed("no worker was killed");
	if (!shared->vchans)
		failed("no vchan was made");
	grant_table_close(&table);
}

int main(int argc, char **argv)
{
	const char *missing = xen_missing();
	unsigned int seconds, guests, i, before;
	struct grant_table table = { };
	pid_t pid[SLOTS + MAX_GUESTS];
	long module_before;

	if (argc != 4) {
		fprintf(stderr, "usage: soak SECONDS SEED GUESTS\n");
		return 2;
	}
	seconds = strtoul(argv[1], NULL, 10);
	seed = strtoull(argv[2], NULL, 10);
	guests = strtoul(argv[3], NULL, 10);
	if (guests > MAX_GUESTS)
		guests = MAX_GUESTS;
	if (!missing && access(QUEUE "stats", R_OK))
		missing = "no " QUEUE "stats: this kernel has no queue of grants to unmap";
	if (!missing && grant_table_open(&table))
		missing = "the grant table cannot be mapped";
	if (missing) {
		fprintf(stderr, "soak: %s\n", missing);
		return 1;
	}
	shared = mmap(NULL, sizeof(*shared), RW, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (shared == MAP_FAILED)
		return 1;
	/*
	 * Else a buffer that was read from a TCP socket goes back to the CPU that
	 * allocated it, which frees it only when it receives something.
	 */
	write_number("/proc/sys/net/core/skb_defer_max", 0);
	before = grants_mapped(&table);
	grant_table_close(&table);
	module_before = read_number("/sys/module/" MODULE "/refcnt");

	for (i = 0; i < SLOTS + guests; i++) {
		pid[i] = fork();
		if (pid[i] < 0)
			failed("cannot fork: %s", strerror(errno));
		if (!pid[i]) {
			if (i < SLOTS)
				slot_run(i);
			else
				guest_run(i - SLOTS + 1);
			_exit(0);
		}
	}
	watch(seconds);
	for (i = 0; i < SLOTS + guests; i++) {
		int code = finish(pid[i], GUEST_MS + END_MS);

		if (code)
			failed("the process of %s %u ended with %d", i < SLOTS ? "slot" : "guest",
			       i < SLOTS ? i : i - SLOTS + 1, code);
	}
	check_end(before, module_before, guests);
	if (shared->failed)
		return 1;
	printf("%u rounds, %u workers killed, %u guests destroyed; pages held by pipes %u, pins %u, registered buffers %u, direct I/O %u, sockets %u, checked %u; %u vchans; %ld deferred, all unmapped in %ld passes and %ld hypercalls, 0 failed, 0 leaked\n",
	       shared->rounds, shared->kills, shared->lives, shared->held[HOLD_PIPE],
	       shared->held[HOLD_PIN], shared->held[HOLD_RING],
	       shared->held[HOLD_WRITE] + shared->held[HOLD_READ],
	       shared->held[HOLD_TCP] + shared->held[HOLD_UNIX], shared->checked, shared->vchans,
	       counter("deferred"), counter("passes"), counter("hypercalls"));
	return 0;
}
