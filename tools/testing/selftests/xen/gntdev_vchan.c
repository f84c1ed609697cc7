// SPDX-License-Identifier: GPL-2.0
/*
 * One process has both ends of a shared-memory channel, as libxenvchan makes them.
 * The server's end has pages of gntalloc, and the client's end maps them by gntdev. If
 * another domain grants, the granter has the server's end for the process.
 * When an end is gone, a byte of the first page is to be cleared and an event is to
 * be sent.
 *
 * The process takes its ends down in some order, or ends itself. Another process has
 * the first page mapped, and has the other sides of the event channels. The byte and
 * the event of an end come when the end is gone, not before, and only once, whoever
 * still holds pages of it.
 */
#include <signal.h>
#include <sys/socket.h>
#include <sys/wait.h>

#include "xen_grant.h"

#include <xen/evtchn.h>

#define RW		(PROT_READ | PROT_WRITE)
#define LONG_S		60

/* The first page is the control page: libxenvchan's two bytes are there. */
#define NR_PAGES	4
#define CLIENT_LIVE	20
#define SERVER_LIVE	21

/* What the process tells about itself */
struct told {
	grant_ref_t ref[NR_PAGES];
};

/* The ends, as the process that has them knows them */
struct ends {
	struct grants server;
	int client;
	char *control, *data;
	int evtchn;
};

static int notify_client(int fd, __u64 index, __u32 port)
{
	struct ioctl_gntdev_unmap_notify op = {
		.index = index + CLIENT_LIVE,
		.action = UNMAP_NOTIFY_CLEAR_BYTE | UNMAP_NOTIFY_SEND_EVENT,
		.event_channel_port = port,
	};

	return ioctl(fd, IOCTL_GNTDEV_SET_UNMAP_NOTIFY, &op);
}

static int notify_server(const struct grants *g, __u32 port)
{
	struct ioctl_gntalloc_unmap_notify op = {
		.index = g->index + SERVER_LIVE,
		.action = UNMAP_NOTIFY_CLEAR_BYTE | UNMAP_NOTIFY_SEND_EVENT,
		.event_channel_port = port,
	};

	return ioctl(g->fd, IOCTL_GNTALLOC_SET_UNMAP_NOTIFY, &op);
}

/* Returns a port at which an event of @domid will come, or -1. */
static int port_open(int fd, domid_t domid)
{
	struct ioctl_evtchn_bind_unbound_port op = { .remote_domain = domid };

	return ioctl(fd, IOCTL_EVTCHN_BIND_UNBOUND_PORT, &op);
}

/* Returns the port by which to send an event to @port, or -1. */
static int port_connect(int fd, int port)
{
	struct ioctl_evtchn_bind_interdomain op = {
		.remote_domain = DOMID_SELF, .remote_port = port,
	};

	return ioctl(fd, IOCTL_EVTCHN_BIND_INTERDOMAIN, &op);
}

static bool server_open(struct ends *e, int server_port)
{
	const struct granter_request request = {
		.count = NR_PAGES,
		.domid = own_domid(),
		.viewer = own_domid(),
		.flags = GNTALLOC_FLAG_WRITABLE,
		.notify_byte = SERVER_LIVE,
		.notify_port = server_port,
	};
	int port;

	if (granter_address())
		return !remote_grants_open(&e->server, &request);
	if (grants_open(&e->server, NR_PAGES, own_domid(), GNTALLOC_FLAG_WRITABLE))
		return false;
	port = port_connect(e->evtchn, server_port);
	return port >= 0 && !notify_server(&e->server, port);
}

/* Have the granter do a step with its memory. */
static bool granter_step(const struct ends *e, char step)
{
	char answer = 0;

	return send(e->server.fd, &step, 1, MSG_NOSIGNAL) == 1 &&
	       recv(e->server.fd, &answer, 1, 0) == 1 && answer == step;
}

static bool server_munmap(struct ends *e)
{
	if (!granter_address())
		return !munmap(e->server.mem, NR_PAGES * PAGE_SIZE);
	grants_hide(&e->server);
	return granter_step(e, GRANTER_MUNMAP);
}

static bool server_close(struct ends *e)
{
	return granter_address() ? granter_step(e, GRANTER_CLOSE) : !close(e->server.fd);
}

static bool ends_open(struct ends *e, int client_port, int server_port)
{
	grant_ref_t *ref = e->server.ref;
	__s64 index;
	unsigned int i;
	int port;

	e->evtchn = open("/dev/xen/evtchn", O_RDWR);
	if (e->evtchn < 0)
		return false;

	if (!server_open(e, server_port))
		return false;
	for (i = 0; i < NR_PAGES; i++)
		fill_page(page(e->server.mem, i), i);
	e->server.mem[CLIENT_LIVE] = 1;
	e->server.mem[SERVER_LIVE] = 1;

	e->client = open("/dev/xen/gntdev", O_RDWR);
	index = gntdev_add(e->client, granter_domid(), ref, 1);
	e->control = mmap(NULL, PAGE_SIZE, RW, MAP_SHARED, e->client, index);
	e->data = gntdev_map(e->client, ref + 1, NR_PAGES - 1, RW);
	if (e->control == MAP_FAILED || e->data == MAP_FAILED)
		return false;
	port = port_connect(e->evtchn, client_port);
	return port >= 0 && !notify_client(e->client, index, port);
}

/* Lower-case letters take down the client's end, upper-case ones the server's. */
static bool ends_step(struct ends *e, char step)
{
	switch (step) {
	case 'u':
		return !munmap(e->control, PAGE_SIZE) &&
		       !munmap(e->data, (NR_PAGES - 1) * PAGE_SIZE);
	case 'c':
		return !close(e->client);
	case 'U':
		return server_munmap(e);
	case 'C':
		return server_close(e);
	case 'v':
		return !close(e->evtchn);
	case 'e':
		_exit(0);
	}
	return false;
}

/* The process that has both ends does the steps that it is told, and answers each. */
static void run_ends(int commands, const int *pipe, struct told *told,
		     int client_port, int server_port)
{
	struct ends e = { };
	char step = 0;
	bool ok;

	ok = ends_open(&e, client_port, server_port) &&
	     (!pipe || (hold(pipe, e.control, 1) &&
			hold(pipe, e.data, NR_PAGES - 1)));
	memcpy(told->ref, e.server.ref, sizeof(told->ref));
	while (ok && write(commands, "+", 1) == 1 &&
	       read(commands, &step, 1) == 1)
		ok = ends_step(&e, step);
	_exit(1);
}

/* The process that has both ends, as seen by the one that watches it */
struct vchan {
	pid_t pid;
	struct told *told;
	int commands[2];
	int pipe[2];
	int client_gone, server_gone;	/* where the events come */
	const char *control;
};

static bool vchan_start(struct vchan *v, bool held)
{
	int client_port, server_port;
	char answer = 0;

	v->told = mmap(NULL, PAGE_SIZE, RW, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	v->client_gone = open("/dev/xen/evtchn", O_RDWR | O_CLOEXEC);
	v->server_gone = open("/dev/xen/evtchn", O_RDWR | O_CLOEXEC);
	client_port = port_open(v->client_gone, DOMID_SELF);
	server_port = port_open(v->server_gone, granter_domid());
	if (v->told == MAP_FAILED || client_port < 0 || server_port < 0 ||
	    socketpair(AF_UNIX, SOCK_STREAM, 0, v->commands) || pipe(v->pipe))
		return false;

	v->pid = fork();
	if (!v->pid)
		run_ends(v->commands[1], held ? v->pipe : NULL, v->told,
			 client_port, server_port);
	return v->pid > 0 && read(v->commands[0], &answer, 1) == 1 &&
	       answer == '+';
}

static void vchan_end(struct vchan *v)
{
	if (v->pid > 0) {
		kill(v->pid, SIGKILL);
		waitpid(v->pid, NULL, 0);
	}
	close(v->client_gone);
	close(v->server_gone);
	close(v->commands[0]);
	close(v->commands[1]);
	close(v->pipe[0]);
	close(v->pipe[1]);
}

/* Have the process do a step, and wait until it is done. */
static bool vchan_step(struct vchan *v, char step)
{
	pid_t pid = v->pid;
	char answer = 0;
	int status;

	if (step == 'k')
		kill(pid, SIGKILL);
	else if (write(v->commands[0], &step, 1) != 1)
		return false;
	if (step != 'e' && step != 'k')
		return read(v->commands[0], &answer, 1) == 1 && answer == '+';
	v->pid = 0;
	return waitpid(pid, &status, 0) == pid &&
	       (step == 'k' ? WIFSIGNALED(status) : status == 0);
}

/* How many steps does it take until both @one and @other are done? */
static unsigned int steps_until(const char *steps, char one, char other)
{
	const char *first = strchr(steps, one), *last = strchr(steps, other);

	/* The process itself ends. */
	if (!first || !last)
		return strlen(steps);
	return (first > last ? first : last) - steps + 1;
}

FIXTURE(vchan)
{
	struct xen_env env;
	struct vchan vchan;
};

/*
 * The order of the steps: munmap and close of the client's end (u, c) and of the
 * server's (U, C), close of the event channels (v), exit (e), or SIGKILL (k).
 */
FIXTURE_VARIANT(vchan)
{
	const char *steps;
};

FIXTURE_VARIANT_ADD(vchan, client_first) { .steps = "ucUCv" };
FIXTURE_VARIANT_ADD(vchan, server_first) { .steps = "UCucv" };
FIXTURE_VARIANT_ADD(vchan, client_first_closed_first) { .steps = "vcuCU" };
FIXTURE_VARIANT_ADD(vchan, server_first_closed_first) { .steps = "vCUcu" };
FIXTURE_VARIANT_ADD(vchan, both_unmapped_then_closed) { .steps = "uUvCc" };
FIXTURE_VARIANT_ADD(vchan, both_closed_then_unmapped) { .steps = "cCvUu" };
FIXTURE_VARIANT_ADD(vchan, exit) { .steps = "e" };
FIXTURE_VARIANT_ADD(vchan, sigkill) { .steps = "k" };

FIXTURE_SETUP(vchan)
{
	xen_env_setup(_metadata, &self->env);
	if (_metadata->exit_code)
		return;
	if (access("/dev/xen/evtchn", R_OK | W_OK))
		SKIP(return, "no access to /dev/xen/evtchn");
}

FIXTURE_TEARDOWN(vchan)
{
	vchan_end(&self->vchan);
	xen_env_teardown(_metadata, &self->env);
}

/* After how many steps the byte of an end is cleared, and its event comes */
struct gone {
	const char *name;
	unsigned int byte, event;
};

static void check_end(struct __test_metadata *_metadata, const struct gone *g,
		      unsigned int steps, int fd, const char *live)
{
	if (steps == g->event) {
		EXPECT_TRUE(event_came(fd, WAIT_MS)) {
			TH_LOG("no event of the %s's end", g->name);
		}
	} else {
		EXPECT_FALSE(event_came(fd, 0)) {
			TH_LOG("event of the %s's end after %u steps, not %u",
			       g->name, steps, g->event);
		}
	}
	/* The event comes after the byte. */
	EXPECT_EQ(steps < g->byte, *live) {
		TH_LOG("after %u steps, byte of the %s's end", steps, g->name);
	}
}

static void run_steps(struct __test_metadata *_metadata, struct vchan *v,
		      const char *steps)
{
	/*
	 * gntdev clears the byte as soon as the process cannot write it, or at the end
	 * of the map where only that unmaps grants.
	 */
	const struct gone client = {
		.name = "client",
		.byte = steps_until(steps, 'u', translated() ? 'c' : 'u'),
		.event = steps_until(steps, 'u', 'c'),
	};
	const struct gone server = {
		.name = "server",
		.byte = steps_until(steps, 'U', 'C'),
		.event = steps_until(steps, 'U', 'C'),
	};
	unsigned int i;

	for (i = 0; ; i++) {
		check_end(_metadata, &client, i, v->client_gone,
			  v->control + CLIENT_LIVE);
		check_end(_metadata, &server, i, v->server_gone,
			  v->control + SERVER_LIVE);
		if (!steps[i])
			break;
		ASSERT_TRUE(vchan_step(v, steps[i]));
	}
}

static bool all_revoked(const struct grant_table *t, const grant_ref_t *ref)
{
	unsigned int i;

	for (i = 0; i < NR_PAGES; i++)
		if (grant_flags(t, ref[i]))
			return false;
	return true;
}

static void run_vchan(struct __test_metadata *_metadata, struct vchan *v,
		      const struct xen_env *env, const char *steps, bool held)
{
	const grant_ref_t *ref;
	char copy[PAGE_SIZE];
	unsigned int i;
	void *control;

	ASSERT_TRUE(vchan_start(v, held));
	ref = v->told->ref;
	for (i = 0; i < NR_PAGES; i++)
		ASSERT_LT(ref[i], env->table.count);
	control = gntdev_map(env->gntdev, ref, 1, PROT_READ);
	ASSERT_NE(MAP_FAILED, control);
	v->control = control;

	run_steps(_metadata, v, steps);
	for (i = 1; i < NR_PAGES; i++)
		EXPECT_EQ(held, grant_mapped(&env->table, ref[i]));
	ASSERT_EQ(0, munmap(control, PAGE_SIZE));

	for (i = 0; held && i < NR_PAGES; i++) {
		EXPECT_TRUE(grant_mapped(&env->table, ref[i]));
		ASSERT_TRUE(drain(v->pipe, copy));
		EXPECT_TRUE(i ? page_holds(copy, i) :
			    !copy[CLIENT_LIVE] && !copy[SERVER_LIVE]);
	}
	EXPECT_TRUE(wait_for(all_revoked(&env->table, ref)));
	EXPECT_FALSE(event_came(v->client_gone, 0));
	EXPECT_FALSE(event_came(v->server_gone, 0));
}

TEST_F_TIMEOUT(vchan, each_end_tells_when_it_is_gone, LONG_S)
{
	run_vchan(_metadata, &self->vchan, &self->env, variant->steps, false);
}

TEST_F_TIMEOUT(vchan, each_end_tells_when_it_is_gone_but_for_held_pages, LONG_S)
{
	run_vchan(_metadata, &self->vchan, &self->env, variant->steps, true);
}

TEST_HARNESS_MAIN
