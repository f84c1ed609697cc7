// SPDX-License-Identifier: GPL-2.0
/*
 * The runner's hands inside the virtual machine, one static program under
 * three names:
 *
 *   relay PORT STREAM...	dom0: makes the FIFO /run/STREAM for every STREAM
 *				and sends what anybody writes there to the host,
 *				until the last STREAM says "end"
 *   guestd			guest: runs the commands that "guest" sends
 *   guest N COMMAND...		dom0: runs COMMAND in guest N
 *
 * A frame is one byte (which stream), four bytes of length and the data.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#define ARRAY_SIZE(a)	(sizeof(a) / sizeof((a)[0]))
#define GUESTD_PORT	7000
#define MAX_STREAMS	16
/* Ends a guest's answer: four bytes of wait status, then the connection. */
#define FRAME_STATUS	0

static void fail(const char *what)
{
	fprintf(stderr, "%s: %s: %s\n", program_invocation_short_name, what,
		strerror(errno));
	exit(125);
}

static void write_all(int fd, const void *data, size_t len)
{
	while (len) {
		ssize_t n = write(fd, data, len);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			fail("write");
		data = (const char *)data + n;
		len -= n;
	}
}

static int read_all(int fd, void *data, size_t len)
{
	while (len) {
		ssize_t n = read(fd, data, len);

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			return -1;
		data = (char *)data + n;
		len -= n;
	}
	return 0;
}

static void send_frame(int fd, unsigned char stream, const void *data,
		       unsigned int len)
{
	unsigned char head[5] = { stream, len, len >> 8, len >> 16, len >> 24 };

	write_all(fd, head, sizeof(head));
	write_all(fd, data, len);
}

static int relay(int argc, char **argv)
{
	struct pollfd fds[MAX_STREAMS];
	static char buf[32768];
	int port, n = argc - 2, i;

	if (n < 1 || n > MAX_STREAMS) {
		fprintf(stderr, "usage: relay PORT STREAM...\n");
		return 125;
	}
	port = open(argv[1], O_WRONLY | O_CLOEXEC);
	if (port < 0)
		fail(argv[1]);
	for (i = 0; i < n; i++) {
		char path[128];

		snprintf(path, sizeof(path), "/run/%s", argv[i + 2]);
		if (mkfifo(path, 0666))
			fail(path);
		/* A writer of our own: no end of file when the others leave. */
		fds[i].fd = open(path, O_RDWR | O_NONBLOCK | O_CLOEXEC);
		fds[i].events = POLLIN;
		if (fds[i].fd < 0)
			fail(path);
	}
	/* The FIFOs are there: the caller may go on. */
	if (daemon(1, 1))
		fail("daemon");

	for (;;) {
		int ready = poll(fds, n, -1);

		if (ready < 0 && errno == EINTR)
			continue;
		if (ready < 0)
			fail("poll");
		/*
		 * The last stream is the control stream: what it says holds
		 * for everything that was written before, so it is read first
		 * and sent last.
		 */
		static char ctl[4096];
		ssize_t ctl_len = 0;

		if (fds[n - 1].revents)
			ctl_len = read(fds[n - 1].fd, ctl, sizeof(ctl));
		for (i = 0; i < n - 1; i++) {
			int left = 0;

			ioctl(fds[i].fd, FIONREAD, &left);
			while (left > 0) {
				ssize_t len = read(fds[i].fd, buf, sizeof(buf));

				if (len <= 0)
					break;
				send_frame(port, i, buf, len);
				left -= len;
			}
		}
		if (ctl_len > 0)
			send_frame(port, n - 1, ctl, ctl_len);
		/* The host has taken all of it: the port's write() waits for that. */
		if (ctl_len >= 4 && !memcmp(ctl + ctl_len - 4, "end\n", 4))
			return 0;
	}
}

/* Runs the command of one connection: argc, then argc strings with their length. */
static void serve(int sock)
{
	unsigned int argc, len, i;
	struct pollfd fds[2];
	int pipes[2][2];
	int open_pipes = 2, status;
	char buf[32768];
	char **argv;
	pid_t pid;

	if (read_all(sock, &argc, sizeof(argc)) || !argc || argc > 65536)
		exit(125);
	argv = calloc(argc + 1, sizeof(*argv));
	for (i = 0; i < argc; i++) {
		if (read_all(sock, &len, sizeof(len)) || len > 1 << 24)
			exit(125);
		argv[i] = calloc(1, len + 1);
		if (read_all(sock, argv[i], len))
			exit(125);
	}
	for (i = 0; i < 2; i++)
		if (pipe2(pipes[i], O_CLOEXEC))
			fail("pipe");
	pid = fork();
	if (pid < 0)
		fail("fork");
	if (!pid) {
		/* What the client still sends is the command's input. */
		dup2(sock, 0);
		dup2(pipes[0][1], 1);
		dup2(pipes[1][1], 2);
		signal(SIGPIPE, SIG_DFL);
		signal(SIGCHLD, SIG_DFL);
		execvp(argv[0], argv);
		fprintf(stderr, "%s: %s\n", argv[0], strerror(errno));
		_exit(errno == ENOENT ? 127 : 126);
	}
	for (i = 0; i < 2; i++) {
		close(pipes[i][1]);
		fds[i].fd = pipes[i][0];
		fds[i].events = POLLIN;
	}
	while (open_pipes) {
		if (poll(fds, 2, -1) < 0)
			fail("poll");
		for (i = 0; i < 2; i++) {
			ssize_t n;

			if (!fds[i].revents)
				continue;
			n = read(fds[i].fd, buf, sizeof(buf));
			if (n > 0) {
				send_frame(sock, i + 1, buf, n);
			} else {
				fds[i].fd = -1;
				open_pipes--;
			}
		}
	}
	if (waitpid(pid, &status, 0) < 0)
		fail("waitpid");
	send_frame(sock, FRAME_STATUS, &status, sizeof(status));
	exit(0);
}

static int guestd(void)
{
	struct sockaddr_in addr = {
		.sin_family = AF_INET,
		.sin_port = htons(GUESTD_PORT),
	};
	int sock = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	int one = 1;

	if (sock < 0)
		fail("socket");
	setsockopt(sock, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
	if (bind(sock, (struct sockaddr *)&addr, sizeof(addr)) || listen(sock, 16))
		fail("listen");
	if (daemon(1, 1))
		fail("daemon");
	signal(SIGCHLD, SIG_IGN);
	for (;;) {
		int conn = accept4(sock, NULL, NULL, SOCK_CLOEXEC);

		if (conn < 0)
			continue;
		if (!fork()) {
			signal(SIGCHLD, SIG_DFL);
			serve(conn);
		}
		close(conn);
	}
}

static int guest(int argc, char **argv)
{
	struct sockaddr_in addr = {
		.sin_family = AF_INET,
		.sin_port = htons(GUESTD_PORT),
	};
	unsigned int count = argc - 2, i;
	struct pollfd fds[2];
	char buf[32768];
	int sock, nr;

	nr = argc > 2 ? atoi(argv[1]) : 0;
	if (nr < 1 || nr > 200) {
		fprintf(stderr, "usage: guest N COMMAND...\n");
		return 125;
	}
	addr.sin_addr.s_addr = htonl(0x0a000001 + nr);
	sock = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (sock < 0)
		fail("socket");
	if (connect(sock, (struct sockaddr *)&addr, sizeof(addr)))
		fail("no connection to the guest");
	write_all(sock, &count, sizeof(count));
	for (i = 0; i < count; i++) {
		unsigned int len = strlen(argv[i + 2]);

		write_all(sock, &len, sizeof(len));
		write_all(sock, argv[i + 2], len);
	}
	fds[0].fd = sock;
	fds[1].fd = STDIN_FILENO;
	fds[0].events = fds[1].events = POLLIN;
	for (;;) {
		if (poll(fds, 2, -1) < 0)
			fail("poll");
		if (fds[1].revents) {
			ssize_t n = read(fds[1].fd, buf, sizeof(buf));

			/* A command that does not read its input is no error. */
			if (n > 0 && send(sock, buf, n, MSG_NOSIGNAL) == n)
				continue;
			shutdown(sock, SHUT_WR);
			fds[1].fd = -1;
		}
		if (fds[0].revents) {
			unsigned char head[5];
			unsigned int len;
			int status;

			if (read_all(sock, head, sizeof(head)))
				break;
			len = head[1] | head[2] << 8 | head[3] << 16 |
			      (unsigned int)head[4] << 24;
			if (head[0] == FRAME_STATUS) {
				if (read_all(sock, &status, sizeof(status)))
					break;
				return WIFEXITED(status) ? WEXITSTATUS(status) :
							   128 + WTERMSIG(status);
			}
			if (len > sizeof(buf) || read_all(sock, buf, len))
				break;
			write_all(head[0], buf, len);
		}
	}
	fprintf(stderr, "guest: guest %d broke off the connection\n", nr);
	return 125;
}

int main(int argc, char **argv)
{
	const char *name = program_invocation_short_name;

	if (!strcmp(name, "relay"))
		return relay(argc, argv);
	signal(SIGPIPE, SIG_IGN);
	if (!strcmp(name, "guestd"))
		return guestd();
	if (!strcmp(name, "guest"))
		return guest(argc, argv);
	fprintf(stderr, "%s: call me relay, guestd or guest\n", name);
	return 125;
}
