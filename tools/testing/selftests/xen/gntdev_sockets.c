// SPDX-License-Identifier: GPL-2.0
/*
 * Granted pages are in the queues of sockets when the process that mapped them
 * unmaps them, exits or is killed. The receiver gets the data of the pages, and the
 * grants are not unmapped before that.
 *
 * The granting side writes the pages anew once they are unmapped. So the data that
 * arrives tells whether the queue holds the pages or has copied them.
 */
#include <sched.h>
#include <signal.h>
#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <linux/errqueue.h>
#include <linux/sockios.h>

#include "xen_grant.h"

#define RW		(PROT_READ | PROT_WRITE)

/* On a slow machine tests take long, but not for ever. */
#define LONG_S		120

/* How many pages are sent. One datagram can have them all, and so can one pipe. */
#define NR_PAGES	8
#define SIZE		(NR_PAGES * PAGE_SIZE)
/* What the granting side writes while the pages are in the queue */
#define REWRITTEN	100

#ifndef SO_ZEROCOPY
#define SO_ZEROCOPY	60
#endif
#ifndef MSG_ZEROCOPY
#define MSG_ZEROCOPY	0x4000000
#endif

enum queue {
	PIPE,		/* the pipe by which pages get to sockets */
	TCP_RECEIVED,	/* spliced to a socket, and received, but not read */
	TCP_UNSENT,	/* spliced to a socket whose peer receives no more */
	TCP_ZEROCOPY,	/* the same, by MSG_ZEROCOPY */
	UDP,
	UNIX_STREAM,	/* spliced to a socket */
	UNIX_RIGHTS,	/* in a pipe that is in the queue of a socket */
	NR_QUEUES
};

enum end { MUNMAP, EXIT, KILL };

/* More than the peer receives, less than the sender takes */
#define FILLER		(256 * 1024)
#define SNDBUF		(1024 * 1024)
#define RCVBUF		(32 * 1024)

/* A connection from the process that maps to the one that receives */
struct way {
	enum queue queue;
	int from, to;
	unsigned int filler;	/* to be read before the pages */
};

static const struct way no_way = { .from = -1, .to = -1 };

static bool is_unsent(const struct way *w)
{
	return w->queue == TCP_UNSENT || w->queue == TCP_ZEROCOPY;
}

static bool inet_open(struct way *w, int type)
{
	struct sockaddr_in addr = {
		.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK),
	};
	int fd = socket(AF_INET, type | SOCK_CLOEXEC, 0), size;
	socklen_t len = sizeof(addr);

	/* The peer inherits the size, which must be known when it connects. */
	size = RCVBUF;
	if (is_unsent(w) &&
	    setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &size, sizeof(size)))
		return false;
	w->from = socket(AF_INET, type | SOCK_CLOEXEC, 0);
	size = SNDBUF;
	if (bind(fd, (struct sockaddr *)&addr, len) ||
	    getsockname(fd, (struct sockaddr *)&addr, &len) ||
	    (type == SOCK_STREAM && listen(fd, 1)) ||
	    setsockopt(w->from, SOL_SOCKET, SO_SNDBUFFORCE, &size, sizeof(size)) ||
	    connect(w->from, (struct sockaddr *)&addr, len))
		return false;
	w->to = fd;
	if (type == SOCK_STREAM) {
		w->to = accept(fd, NULL, NULL);
		close(fd);
	}
	return w->to >= 0;
}

static bool way_open(struct way *w, enum queue queue)
{
	static const char filler[FILLER];
	int one = 1, fd[2];

	*w = no_way;
	w->queue = queue;
	switch (queue) {
	case PIPE:
		if (pipe(fd))
			return false;
		w->to = fd[0];
		w->from = fd[1];
		return true;
	case UNIX_STREAM:
	case UNIX_RIGHTS:
		if (socketpair(AF_UNIX, SOCK_STREAM, 0, fd))
			return false;
		w->to = fd[0];
		w->from = fd[1];
		return true;
	case UDP:
		return inet_open(w, SOCK_DGRAM);
	default:
		if (!inet_open(w, SOCK_STREAM))
			return false;
	}
	if (!is_unsent(w))
		return true;
	w->filler = FILLER;
	return send(w->from, filler, FILLER, MSG_DONTWAIT) == FILLER &&
	       (queue != TCP_ZEROCOPY ||
		!setsockopt(w->from, SOL_SOCKET, SO_ZEROCOPY, &one, sizeof(one)));
}

static void close_end(int *fd)
{
	if (*fd >= 0)
		close(*fd);
	*fd = -1;
}

static void way_close(struct way *w)
{
	close_end(&w->from);
	close_end(&w->to);
}

/* Put the pages themselves into the queue of the socket. */
static bool splice_pages(int sock, void *mem)
{
	size_t left = SIZE;
	int fd[2];
	bool ok;

	if (pipe(fd))
		return false;
	ok = hold(fd, mem, NR_PAGES);
	while (ok && left) {
		ssize_t len = splice(fd[0], NULL, sock, NULL, left, 0);

		ok = len > 0;
		left -= ok ? len : 0;
	}
	close(fd[0]);
	close(fd[1]);
	return ok;
}

/* Pass a file by a UNIX socket. The caller may close it. */
static bool send_file(int sock, int fd)
{
	char byte = 'f', control[CMSG_SPACE(sizeof(fd))] = { };
	struct iovec iov = { &byte, 1 };
	struct msghdr msg = {
		.msg_iov = &iov, .msg_iovlen = 1,
		.msg_control = control, .msg_controllen = sizeof(control),
	};
	struct cmsghdr *cmsg = CMSG_FIRSTHDR(&msg);

	cmsg->cmsg_level = SOL_SOCKET;
	cmsg->cmsg_type = SCM_RIGHTS;
	cmsg->cmsg_len = CMSG_LEN(sizeof(fd));
	memcpy(CMSG_DATA(cmsg), &fd, sizeof(fd));
	return sendmsg(sock, &msg, 0) == 1;
}

static int receive_file(int sock)
{
	char byte, control[CMSG_SPACE(sizeof(int))] = { };
	struct iovec iov = { &byte, 1 };
	struct msghdr msg = {
		.msg_iov = &iov, .msg_iovlen = 1,
		.msg_control = control, .msg_controllen = sizeof(control),
	};
	struct cmsghdr *cmsg;
	int fd = -1;

	if (recvmsg(sock, &msg, 0) != 1)
		return -1;
	cmsg = CMSG_FIRSTHDR(&msg);
	if (cmsg && cmsg->cmsg_type == SCM_RIGHTS)
		memcpy(&fd, CMSG_DATA(cmsg), sizeof(fd));
	return fd;
}

static bool send_pipe(int sock, void *mem)
{
	int fd[2];
	bool ok;

	if (pipe(fd))
		return false;
	ok = hold(fd, mem, NR_PAGES) && send_file(sock, fd[0]);
	close(fd[0]);
	close(fd[1]);
	return ok;
}

static bool way_send(const struct way *w, void *mem)
{
	const int fd[2] = { w->to, w->from };
	int unsent = 0;
	bool ok;

	switch (w->queue) {
	case PIPE:
		return hold(fd, mem, NR_PAGES);
	case UNIX_RIGHTS:
		return send_pipe(w->from, mem);
	case TCP_ZEROCOPY:
		ok = send(w->from, mem, SIZE, MSG_ZEROCOPY | MSG_DONTWAIT) == SIZE;
		break;
	default:
		ok = splice_pages(w->from, mem);
	}
	return ok && (!is_unsent(w) || (!ioctl(w->from, SIOCOUTQNSD, &unsent) &&
					unsent >= SIZE));
}

/* Wait until all data has arrived, unless it is to stay unsent. */
static bool way_arrived(const struct way *w)
{
	int len = 0;

	return w->queue == UNIX_RIGHTS || is_unsent(w) ||
	       wait_for(!ioctl(w->to, FIONREAD, &len) && len == SIZE);
}

static bool read_all(int fd, char *to, size_t len)
{
	while (len) {
		ssize_t n = read(fd, to, len);

		if (n <= 0)
			return false;
		to += n;
		len -= n;
	}
	return true;
}

/* Send a packet from this CPU to itself. */
static bool receive_packet(void)
{
	struct sockaddr_in addr = {
		.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK),
	};
	int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	socklen_t len = sizeof(addr);
	char byte = 0;
	bool ok;

	ok = !bind(fd, (struct sockaddr *)&addr, len) &&
	     !getsockname(fd, (struct sockaddr *)&addr, &len) &&
	     sendto(fd, &byte, 1, 0, (struct sockaddr *)&addr, len) == 1 &&
	     recv(fd, &byte, 1, 0) == 1;
	close(fd);
	return ok;
}

/*
 * A buffer that was read from a socket, or was in one that is closed, goes back to
 * the CPU that allocated it. This CPU frees it when it receives something
 * (net.core.skb_defer_max), which may take for ever on a machine that does nothing
 * else. All kernels do so with TCP, newer ones with UDP, too.
 */
static bool receive_on_all_cpus(void)
{
	cpu_set_t all, one;
	bool ok = true;
	int cpu;

	if (sched_getaffinity(0, sizeof(all), &all))
		return false;
	for (cpu = 0; cpu < CPU_SETSIZE && ok; cpu++) {
		if (!CPU_ISSET(cpu, &all))
			continue;
		CPU_ZERO(&one);
		CPU_SET(cpu, &one);
		ok = !sched_setaffinity(0, sizeof(one), &one) && receive_packet();
	}
	return !sched_setaffinity(0, sizeof(all), &all) && ok;
}

/* Take everything out of the queue. */
static bool way_receive(struct way *w, char *copy)
{
	char filler[1024];
	int fd;
	bool ok;

	for (; w->filler; w->filler -= sizeof(filler))
		if (!read_all(w->to, filler, sizeof(filler)))
			return false;
	switch (w->queue) {
	case UDP:
		return recv(w->to, copy, SIZE, 0) == SIZE && receive_on_all_cpus();
	case UNIX_RIGHTS:
		fd = receive_file(w->to);
		ok = fd >= 0 && read_all(fd, copy, SIZE);
		close_end(&fd);
		return ok;
	default:
		return read_all(w->to, copy, SIZE) && receive_on_all_cpus();
	}
}

/* How many pages wait to be unmapped, or -1 if the kernel does not tell */
static long waiting(void)
{
	FILE *file = fopen("/sys/kernel/debug/xen/grant_unmap/stats", "r");
	long value, pages = 0;
	char name[32];

	if (!file)
		return -1;
	while (fscanf(file, "%31s %ld", name, &value) == 2) {
		if (!strcmp(name, "deferred"))
			pages += value;
		else if (!strcmp(name, "unmapped") || !strcmp(name, "failed"))
			pages -= value;
	}
	fclose(file);
	return pages;
}

/* A process that maps and sends, and the data that this one receives */
struct sender {
	struct way way;
	pid_t pid;
	char copy[SIZE];
};

FIXTURE(queue)
{
	struct xen_env env;
	struct sender sender;
};

FIXTURE_VARIANT(queue)
{
	enum end end;
};

FIXTURE_VARIANT_ADD(queue, munmap) { .end = MUNMAP };
FIXTURE_VARIANT_ADD(queue, exit) { .end = EXIT };
FIXTURE_VARIANT_ADD(queue, sigkill) { .end = KILL };

/* How many of the grants that are sent are mapped */
static unsigned int nr_mapped(const struct xen_env *env)
{
	unsigned int i, mapped = 0;

	for (i = 0; i < NR_PAGES; i++)
		mapped += grant_mapped(&env->table, env->grants.ref[i]);
	return mapped;
}

FIXTURE_SETUP(queue)
{
	xen_env_setup(_metadata, &self->env);
	self->sender.way = no_way;
}

static void end_process(pid_t *pid)
{
	if (*pid > 0) {
		kill(*pid, SIGKILL);
		waitpid(*pid, NULL, 0);
	}
	*pid = 0;
}

FIXTURE_TEARDOWN(queue)
{
	end_process(&self->sender.pid);
	way_close(&self->sender.way);
	xen_env_teardown(_metadata, &self->env);
}

/* The process that maps: it stops when the pages are sent, and when they are unmapped. */
static void map_and_send(struct way *w, const grant_ref_t *ref, enum end end)
{
	/* Not the open file that it shares with its parent */
	int fd = open("/dev/xen/gntdev", O_RDWR);
	void *mem = gntdev_map(fd, ref, NR_PAGES, RW);

	if (w->queue != PIPE)
		close_end(&w->to);
	if (mem == MAP_FAILED || !way_send(w, mem))
		_exit(1);
	raise(SIGSTOP);
	if (end == MUNMAP) {
		if (munmap(mem, SIZE))
			_exit(2);
		raise(SIGSTOP);
	}
	_exit(0);
}

static bool has_stopped(pid_t pid)
{
	int status;

	return waitpid(pid, &status, WUNTRACED) == pid && WIFSTOPPED(status);
}

static bool has_ended(pid_t *pid, bool killed)
{
	pid_t child = *pid;
	int status;

	if (waitpid(child, &status, 0) != child)
		return false;
	*pid = 0;
	return killed ? WIFSIGNALED(status) : status == 0;
}

/* Start a process that sends pages, and have it end the mapping. */
static bool send_and_end(struct way *w, pid_t *pid, const grant_ref_t *ref,
			 enum end end)
{
	*pid = fork();
	if (!*pid)
		map_and_send(w, ref, end);
	close_end(&w->from);
	if (*pid < 0 || !has_stopped(*pid) || !way_arrived(w))
		return false;
	kill(*pid, end == KILL ? SIGKILL : SIGCONT);
	return end == MUNMAP ? has_stopped(*pid) : has_ended(pid, end == KILL);
}

static void run_queue(struct __test_metadata *_metadata, struct sender *s,
		      const struct xen_env *env, enum queue queue, enum end end)
{
	bool has_stats = waiting() >= 0;
	unsigned int i;

	ASSERT_TRUE(way_open(&s->way, queue)) {
		TH_LOG("no such queue: %s", strerror(errno));
	}
	ASSERT_TRUE(send_and_end(&s->way, &s->pid, env->grants.ref, end));
	EXPECT_EQ(NR_PAGES, nr_mapped(env));
	for (i = 0; i < NR_PAGES; i++)
		fill_page(page(env->grants.mem, i), REWRITTEN + i);
	if (has_stats)
		EXPECT_EQ(NR_PAGES, waiting());

	ASSERT_TRUE(way_receive(&s->way, s->copy));
	for (i = 0; i < NR_PAGES; i++)
		EXPECT_TRUE(page_holds(page(s->copy, i), REWRITTEN + i));
	EXPECT_TRUE(wait_for(!nr_mapped(env)));
	if (has_stats)
		EXPECT_TRUE(wait_for(waiting() == 0));
}

TEST_F_TIMEOUT(queue, of_tcp_that_sends_keeps_pages, LONG_S)
{
	run_queue(_metadata, &self->sender, &self->env, TCP_UNSENT, variant->end);
}

TEST_F_TIMEOUT(queue, of_tcp_that_sends_keeps_pages_of_zerocopy, LONG_S)
{
	run_queue(_metadata, &self->sender, &self->env, TCP_ZEROCOPY, variant->end);
}

TEST_F_TIMEOUT(queue, of_tcp_that_receives_keeps_pages, LONG_S)
{
	run_queue(_metadata, &self->sender, &self->env, TCP_RECEIVED, variant->end);
}

TEST_F_TIMEOUT(queue, of_udp_keeps_pages, LONG_S)
{
	run_queue(_metadata, &self->sender, &self->env, UDP, variant->end);
}

TEST_F_TIMEOUT(queue, of_unix_socket_keeps_pages, LONG_S)
{
	run_queue(_metadata, &self->sender, &self->env, UNIX_STREAM, variant->end);
}

TEST_F_TIMEOUT(queue, of_unix_socket_keeps_pages_of_a_pipe, LONG_S)
{
	run_queue(_metadata, &self->sender, &self->env, UNIX_RIGHTS, variant->end);
}

TEST_F_TIMEOUT(queue, of_pipe_keeps_pages, LONG_S)
{
	run_queue(_metadata, &self->sender, &self->env, PIPE, variant->end);
}

TEST_F_TIMEOUT(queue, that_is_closed_lets_go_of_pages, LONG_S)
{
	struct sender *s = &self->sender;
	enum queue queue;
	unsigned int i;

	for (queue = PIPE; queue < NR_QUEUES; queue++) {
		/* The process that has munmapped still has the pipe's other end. */
		if (queue == PIPE && variant->end == MUNMAP)
			continue;
		ASSERT_TRUE(way_open(&s->way, queue));
		ASSERT_TRUE(send_and_end(&s->way, &s->pid,
					 self->env.grants.ref, variant->end));
		EXPECT_EQ(NR_PAGES, nr_mapped(&self->env));

		way_close(&s->way);
		EXPECT_TRUE(receive_on_all_cpus());
		EXPECT_TRUE(wait_for(!nr_mapped(&self->env)));
		for (i = 0; i < NR_PAGES; i++)
			EXPECT_TRUE(page_holds(page(self->env.grants.mem, i), i));
		end_process(&s->pid);
	}
}

FIXTURE(sockets)
{
	struct xen_env env;
	struct way way;
	char copy[SIZE];
};

FIXTURE_SETUP(sockets)
{
	xen_env_setup(_metadata, &self->env);
	self->way = no_way;
}

FIXTURE_TEARDOWN(sockets)
{
	way_close(&self->way);
	xen_env_teardown(_metadata, &self->env);
}

/* Does the socket tell that it is done with the pages of MSG_ZEROCOPY? */
static bool zerocopy_done(int sock)
{
	char control[128];
	struct msghdr msg = {
		.msg_control = control, .msg_controllen = sizeof(control),
	};
	struct sock_extended_err *err;

	if (recvmsg(sock, &msg, MSG_ERRQUEUE | MSG_DONTWAIT) < 0 ||
	    !CMSG_FIRSTHDR(&msg))
		return false;
	err = (void *)CMSG_DATA(CMSG_FIRSTHDR(&msg));
	return err->ee_origin == SO_EE_ORIGIN_ZEROCOPY && !err->ee_errno;
}

TEST_F(sockets, zerocopy_completes_after_munmap)
{
	unsigned int i;
	char *mem;

	ASSERT_TRUE(way_open(&self->way, TCP_ZEROCOPY));
	mem = gntdev_map(self->env.gntdev, self->env.grants.ref, NR_PAGES, RW);
	ASSERT_NE(MAP_FAILED, mem);
	ASSERT_TRUE(way_send(&self->way, mem));
	ASSERT_EQ(0, munmap(mem, SIZE));
	EXPECT_FALSE(zerocopy_done(self->way.from));
	EXPECT_EQ(NR_PAGES, nr_mapped(&self->env));

	ASSERT_TRUE(way_receive(&self->way, self->copy));
	EXPECT_TRUE(wait_for(zerocopy_done(self->way.from)));
	EXPECT_TRUE(wait_for(!nr_mapped(&self->env)));
	for (i = 0; i < NR_PAGES; i++)
		EXPECT_TRUE(page_holds(page(self->copy, i), i));
}

/*
 * Have the kernel look for sockets that nobody can read any more. It does so whenever
 * a socket is closed. Before, it may have looked when the last one could still be read.
 */
static bool collect_sockets(void)
{
	int fd[2];

	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fd))
		return false;
	close(fd[0]);
	close(fd[1]);
	return true;
}

/*
 * Only its own queue refers to a socket any more, so nobody will ever read it. The
 * kernel finds that out, and closes the socket and the files in its queue. One of
 * them is gntdev's.
 */
TEST_F(sockets, pages_in_a_queue_that_refers_to_itself_are_unmapped)
{
	int fd = open("/dev/xen/gntdev", O_RDWR | O_CLOEXEC);
	unsigned int i;
	char *mem;

	ASSERT_LE(0, fd);
	ASSERT_TRUE(way_open(&self->way, UNIX_STREAM));
	mem = gntdev_map(fd, self->env.grants.ref, NR_PAGES, RW);
	ASSERT_NE(MAP_FAILED, mem);
	ASSERT_TRUE(splice_pages(self->way.from, mem));
	ASSERT_TRUE(send_file(self->way.from, self->way.to));
	ASSERT_TRUE(send_file(self->way.from, fd));
	ASSERT_EQ(0, close(fd));
	ASSERT_EQ(0, munmap(mem, SIZE));
	EXPECT_EQ(NR_PAGES, nr_mapped(&self->env));

	way_close(&self->way);
	EXPECT_TRUE(wait_for(collect_sockets() && !nr_mapped(&self->env)));
	for (i = 0; i < NR_PAGES; i++)
		EXPECT_TRUE(page_holds(page(self->env.grants.mem, i), i));
}

TEST_HARNESS_MAIN
