// SPDX-License-Identifier: GPL-2.0
/*
 * Grants pages of this domain to tests that run in another one, and lets them see
 * what becomes of the grants. A connection by TCP is one set of grants: these go when
 * the connection does, so a test that dies leaves nothing behind.
 *
 * Each page is granted twice. The test maps one grant, and sees the page as the
 * granting side does by the other one. gntalloc makes one grant of a page only, so
 * the granter makes the other one of another page, and writes the first page's frame
 * into its entry of the grant table. It grants the frames of that table, too.
 *
 * usage: granter
 *
 * It needs hypercalls: in a guest, boot with xen_privcmd.unrestricted=1. It goes to
 * the background when it can be connected to. Anybody who can reach the port gets
 * all of this domain: it is for tests only.
 */
#include "xen_grant.h"

#include <xen/evtchn.h>

struct set {
	struct grants grants;	/* none, if the set is the table's */
	struct grants view;
	struct grant_table table;
};

static const char *set_open_table(struct set *s, const struct granter_request *request)
{
	unsigned long frames[MAX_TABLE_FRAMES];
	int i, count = grant_table_frames(frames);

	if (count < 0)
		return "GNTTABOP_setup_table";
	if (local_grants_open(&s->view, count, request->viewer, GNTALLOC_FLAG_WRITABLE))
		return "gntalloc";
	if (local_grant_table_open(&s->table))
		return "map the grant table";
	for (i = 0; i < count; i++)
		s->table.entry[s->view.ref[i]].frame = frames[i];
	return NULL;
}

/* The kernel keeps the event channel after the file is closed. */
static int notify(const struct grants *g, const struct granter_request *request)
{
	struct ioctl_evtchn_bind_interdomain bind = {
		.remote_domain = request->viewer, .remote_port = request->notify_port,
	};
	struct ioctl_gntalloc_unmap_notify op = {
		.index = g->index + request->notify_byte,
		.action = UNMAP_NOTIFY_CLEAR_BYTE | UNMAP_NOTIFY_SEND_EVENT,
	};
	int fd = open("/dev/xen/evtchn", O_RDWR | O_CLOEXEC);
	int port = ioctl(fd, IOCTL_EVTCHN_BIND_INTERDOMAIN, &bind);
	int err = -1;

	op.event_channel_port = port;
	if (port >= 0)
		err = ioctl(g->fd, IOCTL_GNTALLOC_SET_UNMAP_NOTIFY, &op);
	close(fd);
	return err;
}

static const char *set_open(struct set *s, const struct granter_request *request)
{
	unsigned int i;

	if (!request->count)
		return set_open_table(s, request);
	if (request->count > MAX_GRANTS)
		return "too many pages";
	if (local_grants_open(&s->grants, request->count, request->domid, request->flags) ||
	    local_grants_open(&s->view, request->count, request->viewer,
			      GNTALLOC_FLAG_WRITABLE))
		return "gntalloc";
	if (request->notify_port && notify(&s->grants, request))
		return "notification";
	/* Now that all grants are in it */
	if (local_grant_table_open(&s->table))
		return "map the grant table";
	for (i = 0; i < request->count; i++)
		s->table.entry[s->view.ref[i]].frame =
			s->table.entry[s->grants.ref[i]].frame;
	return NULL;
}

/*
 * The kernel uses a page again when the page's own grant has gone. So the grants by
 * which the test sees the pages have to be unmapped before.
 */
static void set_close(struct set *s)
{
	unsigned int i;

	for (i = 0; s->table.entry && i < s->view.count; i++)
		while (grant_mapped(&s->table, s->view.ref[i]))
			usleep(1000);
	local_grants_close(&s->view);
	local_grants_close(&s->grants);
	if (s->table.entry)
		munmap(s->table.entry, s->table.count * sizeof(*s->table.entry));
}

static void send_all(int fd, const void *data, size_t len)
{
	if (len && send(fd, data, len, MSG_NOSIGNAL) != (ssize_t)len)
		shutdown(fd, SHUT_RDWR);
}

static void set_step(struct set *s, char step)
{
	struct grants *g = &s->grants;

	if (step == GRANTER_MUNMAP && g->mem) {
		munmap(g->mem, g->count * PAGE_SIZE);
		g->mem = NULL;
	} else if (step == GRANTER_CLOSE && g->fd > 0) {
		close(g->fd);
		g->fd = 0;
	}
}

/* Make a set of grants, and keep it until the connection ends. */
static void serve(int fd)
{
	struct granter_answer answer = { .domid = own_domid() };
	struct granter_request request;
	struct set set = { };
	const char *failed;
	int one = 1;
	char byte;

	setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
	setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &one, sizeof(one));
	if (receive_all(fd, &request, sizeof(request)))
		return;
	errno = EINVAL;
	failed = set_open(&set, &request);
	if (failed) {
		answer.error = errno;
		snprintf(answer.step, sizeof(answer.step), "%s", failed);
	}
	answer.count = set.view.count;
	send_all(fd, &answer, sizeof(answer));
	if (!failed) {
		send_all(fd, set.grants.ref, set.grants.count * sizeof(set.grants.ref[0]));
		send_all(fd, set.view.ref, set.view.count * sizeof(set.view.ref[0]));
		while (recv(fd, &byte, 1, 0) > 0) {
			set_step(&set, byte);
			send_all(fd, &byte, 1);
		}
	}
	set_close(&set);
}

int main(int argc, char **argv)
{
	struct sockaddr_in addr = {
		.sin_family = AF_INET, .sin_port = htons(GRANTER_PORT),
	};
	int one = 1, fd, conn;

	fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one)) ||
	    bind(fd, (struct sockaddr *)&addr, sizeof(addr)) || listen(fd, SOMAXCONN)) {
		perror("granter");
		return 1;
	}
	if (own_domid() < 0) {
		fprintf(stderr, "granter: this domain has no number\n");
		return 1;
	}
	signal(SIGCHLD, SIG_IGN);
	if (daemon(0, 0)) {
		perror("granter");
		return 1;
	}
	for (;;) {
		conn = accept4(fd, NULL, NULL, SOCK_CLOEXEC);
		if (conn < 0)
			continue;
		if (!fork()) {
			close(fd);
			serve(conn);
			_exit(0);
		}
		close(conn);
	}
}
