// SPDX-License-Identifier: GPL-2.0
/*
 * What testbed/suites/backend runs in dom0 and has no program for:
 *
 *   backend echo DEVICE MS	each packet that is sent to the network DEVICE goes
 *				at once, and a copy of it MS later, which refers to
 *				the same pages; 0: no more
 *   backend delay DEVICE MS	all packets go MS later
 *   backend listen DEVICE N PAGES
 *				reads what is sent to DEVICE until it has read each
 *				page of "write N" of the frontend twice
 *   backend hold DEVICE	packets to the network DEVICE stay in its queue
 *   backend go DEVICE		until this lets them go
 *   backend send ADDRESS COUNT	sends pages there, a datagram each
 *   backend fill ADDRESS COUNT	sends as many other datagrams
 *   backend receive COUNT FILE	goes on in the background, and makes FILE when all of
 *				them have come
 *   backend tap DEVICE MAC COUNT
 *				makes a tap, and ends when all of them have come there
 *   backend pressure SECONDS DISK MIB FREE
 *				with FREE MiB of memory left, writes MIB to DISK
 *				and reads it, again and again, while granted
 *				pages are held and unmapped
 *   backend grant COUNT	grants pages to domain 0, prints the references and
 *				goes on in the background
 *   backend use DOMID REF...	maps these pages, holds and unmaps some of them, and
 *				does to the others what must not hurt
 *   backend answer		sends each datagram back, in the background
 *   backend swapped ADDRESS	sends pages of the swap cache there, where they are
 *				answered, and compares what comes back
 */
#define _GNU_SOURCE
#include <err.h>
#include <limits.h>
#include <poll.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <arpa/inet.h>
#include <net/if.h>
#include <linux/if_ether.h>
#include <linux/if_packet.h>
#include <netinet/ether.h>
#include <netinet/ip.h>
#include <netinet/udp.h>
#include <linux/if_tun.h>
#include <linux/netlink.h>
#include <linux/pkt_sched.h>
#include <linux/rtnetlink.h>

#include "xen_grant.h"

/* The domain that it runs in, which grants to itself */
#define DOM0	0

#define RW	(PROT_READ | PROT_WRITE)
#define HELD	16
#define PORT	5000
/* What "frontend ... write N" fills page I of the disk with */
#define FRONTEND_STAMP(n, i)	((n) * 1000 + (i))
/* How much of a page goes into one packet */
#define PAYLOAD	1000

/* The network */

struct qdisc_request {
	struct nlmsghdr head;
	struct tcmsg tc;
	char attrs[512];
};

static void *add_attr(struct qdisc_request *req, int type, const void *data, size_t len)
{
	struct rtattr *attr = (void *)req + NLMSG_ALIGN(req->head.nlmsg_len);

	attr->rta_type = type;
	attr->rta_len = RTA_LENGTH(len);
	memcpy(RTA_DATA(attr), data, len);
	req->head.nlmsg_len = NLMSG_ALIGN(req->head.nlmsg_len) + RTA_ALIGN(attr->rta_len);
	return attr;
}

/* For a queueing discipline that takes the place of the device's. */
static struct qdisc_request qdisc_request(const char *device)
{
	struct qdisc_request req = {
		.head.nlmsg_len = NLMSG_LENGTH(sizeof(req.tc)),
		.head.nlmsg_type = RTM_NEWQDISC,
		.head.nlmsg_flags = NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE | NLM_F_REPLACE,
		.tc.tcm_parent = TC_H_ROOT,
		.tc.tcm_ifindex = if_nametoindex(device),
	};

	if (!req.tc.tcm_ifindex)
		err(1, "no network device %s", device);
	return req;
}

static int netlink(struct qdisc_request *req, const char *device)
{
	struct {
		struct nlmsghdr head;
		struct nlmsgerr error;
		char more[1024];
	} answer;
	int sock = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_ROUTE);

	if (sock < 0)
		err(1, "netlink");
	if (send(sock, req, req->head.nlmsg_len, 0) < 0 ||
	    recv(sock, &answer, sizeof(answer), 0) < (ssize_t)NLMSG_LENGTH(sizeof(int)))
		err(1, "netlink");
	close(sock);
	if (answer.error.error) {
		errno = -answer.error.error;
		err(1, "queueing discipline of %s", device);
	}
	return 0;
}

/*
 * For an echo netem duplicates every packet. The duplicate is put into the queue first;
 * of two packets (gap) it delays one and lets the next pass.
 */
static int packets_late(const char *device, unsigned int ms, bool echo)
{
	struct qdisc_request req = qdisc_request(device);
	struct tc_netem_qopt opt = {
		.limit = 10000, .gap = echo ? 2 : 0, .duplicate = echo ? ~0 : 0,
	};
	__s64 delay = ms * 1000000LL;
	struct rtattr *options;

	if (ms) {
		add_attr(&req, TCA_KIND, "netem", sizeof("netem"));
		options = add_attr(&req, TCA_OPTIONS, &opt, sizeof(opt));
		add_attr(&req, TCA_NETEM_LATENCY64, &delay, sizeof(delay));
		options->rta_len = (char *)&req + req.head.nlmsg_len - (char *)options;
	} else {
		req.head.nlmsg_type = RTM_DELQDISC;
		req.head.nlmsg_flags = NLM_F_REQUEST | NLM_F_ACK;
	}
	return netlink(&req, device);
}

/* A plug holds the packets that come, until it is told to let all go. */
static int packets_hold(const char *device, bool hold)
{
	struct qdisc_request req = qdisc_request(device);
	struct tc_plug_qopt opt = { .action = TCQ_PLUG_RELEASE_INDEFINITE };

	add_attr(&req, TCA_KIND, "plug", sizeof("plug"));
	if (!hold) {
		req.head.nlmsg_flags = NLM_F_REQUEST | NLM_F_ACK;
		add_attr(&req, TCA_OPTIONS, &opt, sizeof(opt));
	}
	return netlink(&req, device);
}

static bool all_twice(const unsigned int *seen, unsigned int pages)
{
	unsigned int i;

	for (i = 0; i < pages; i++)
		if (seen[i] < 2)
			return false;
	return true;
}

/*
 * A page is read from its packet here, some time after the packet was sent: until
 * then this socket has it. A packet may be larger than a page, and have it anywhere.
 */
static int listen_for(const char *device, unsigned int n, unsigned int pages)
{
	struct sockaddr_ll from = {
		.sll_family = AF_PACKET,
		.sll_protocol = htons(ETH_P_ALL),
		.sll_ifindex = if_nametoindex(device),
	};
	const struct timeval patience = { .tv_sec = 30 };
	int sock = socket(AF_PACKET, SOCK_RAW | SOCK_CLOEXEC, htons(ETH_P_ALL));
	static char packet[128 * 1024], want[HELD][PAGE_SIZE];
	unsigned int i, seen[HELD] = { };

	if (sock < 0 || bind(sock, (struct sockaddr *)&from, sizeof(from)) ||
	    setsockopt(sock, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof(patience)))
		err(1, "cannot listen to %s", device);
	if (pages > HELD)
		errx(1, "%u pages", pages);
	for (i = 0; i < pages; i++)
		fill_page(want[i], FRONTEND_STAMP(n, i));
	while (!all_twice(seen, pages)) {
		socklen_t size = sizeof(from);
		ssize_t len = recvfrom(sock, packet, sizeof(packet), 0,
				       (struct sockaddr *)&from, &size);

		if (len < 0)
			err(1, "cannot read a packet");
		/* On "lo" it comes in, too. */
		if (from.sll_pkttype != PACKET_OUTGOING)
			continue;
		for (i = 0; i < pages; i++)
			seen[i] += !!memmem(packet, len, want[i], PAGE_SIZE);
	}
	return 0;
}

/* Memory */

static long vmstat(const char *name)
{
	FILE *file = fopen("/proc/vmstat", "r");
	char key[64];
	long value, found = -1;

	if (!file)
		return -1;
	while (found < 0 && fscanf(file, "%63s %ld", key, &value) == 2)
		if (!strcmp(key, name))
			found = value;
	fclose(file);
	if (found < 0)
		errx(1, "no %s in /proc/vmstat", name);
	return found;
}

/* Maps all the grants, unmaps them while a pipe holds some, until it is told to stop. */
static int hold_and_unmap(int gntdev, const struct grants *g, const bool *stop)
{
	static char copy[PAGE_SIZE];
	unsigned int rounds = 0, i;
	struct iovec iov;
	__s64 index;
	int fds[2];
	char *mem;

	if (pipe(fds))
		err(1, "pipe");
	while (!__atomic_load_n(stop, __ATOMIC_RELAXED)) {
		index = gntdev_add(gntdev, DOM0, g->ref, g->count);
		/* There may be no memory to trade for the pages of a moment. */
		if (index < 0 && (errno == ENOMEM || errno == EAGAIN)) {
			usleep(10000);
			continue;
		}
		if (index < 0)
			err(1, "map grants");
		mem = mmap(NULL, g->count * PAGE_SIZE, RW, MAP_SHARED, gntdev, index);
		if (mem == MAP_FAILED)
			err(1, "mmap of grants");
		iov.iov_base = mem;
		iov.iov_len = HELD * PAGE_SIZE;
		if (vmsplice(fds[1], &iov, 1, 0) != (ssize_t)iov.iov_len)
			err(1, "vmsplice");
		if (munmap(mem, g->count * PAGE_SIZE) || gntdev_remove(gntdev, index, g->count))
			err(1, "unmap grants");
		usleep(20000);
		for (i = 0; i < HELD; i++)
			if (read(fds[0], copy, PAGE_SIZE) != PAGE_SIZE || !page_holds(copy, i))
				errx(1, "page %u that a pipe held has wrong data", i);
		rounds++;
	}
	return rounds > 0 ? 0 : 1;
}

static long free_kib(void)
{
	return vmstat("nr_free_pages") * (PAGE_SIZE / 1024);
}

static void take_memory(unsigned int leave_mib)
{
	while (free_kib() > leave_mib * 1024L) {
		char *mem = mmap(NULL, 256 * PAGE_SIZE, RW, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

		if (mem == MAP_FAILED || mlock(mem, 256 * PAGE_SIZE))
			err(1, "cannot take memory");
	}
}

/*
 * Writes the disk by the page cache and reads it from the disk. Returns how low
 * free memory was.
 */
static long write_and_read(int disk, unsigned int mib, unsigned int round)
{
	long lowest = free_kib();
	static __u32 chunk[256][PAGE_SIZE / sizeof(__u32)];
	unsigned int i, j;

	for (i = 0; i < mib; i++) {
		for (j = 0; j < 256; j++)
			fill_page(chunk[j], round * 100000 + i * 256 + j);
		if (pwrite(disk, chunk, sizeof(chunk), i * sizeof(chunk)) != sizeof(chunk))
			err(1, "cannot write MiB %u", i);
		if (free_kib() < lowest)
			lowest = free_kib();
	}
	if (fsync(disk) || posix_fadvise(disk, 0, 0, POSIX_FADV_DONTNEED))
		err(1, "fsync");
	for (i = 0; i < mib; i++) {
		if (pread(disk, chunk, sizeof(chunk), i * sizeof(chunk)) != sizeof(chunk))
			err(1, "cannot read MiB %u", i);
		for (j = 0; j < 256; j++)
			if (!page_holds(chunk[j], round * 100000 + i * 256 + j))
				errx(1, "page %u of the disk has wrong data in round %u",
				     i * 256 + j, round);
	}
	return lowest;
}

static int pressure(unsigned int seconds, const char *path, unsigned int mib, unsigned int leave_mib)
{
	__u64 begin = now_ms(), next = begin + 5000;
	const char *missing = xen_missing();
	unsigned int round = 0, i;
	struct grants grants;
	int gntdev, disk, status;
	long lowest = LONG_MAX;
	bool *stop;
	pid_t pid;

	if (missing)
		errx(1, "%s", missing);
	if (grants_open(&grants, MAX_GRANTS, DOM0, GNTALLOC_FLAG_WRITABLE))
		err(1, "cannot grant pages");
	for (i = 0; i < MAX_GRANTS; i++)
		fill_page(grants.mem + i * PAGE_SIZE, i);
	gntdev = open("/dev/xen/gntdev", O_RDWR | O_CLOEXEC);
	if (gntdev < 0)
		err(1, "/dev/xen/gntdev");
	disk = open(path, O_RDWR | O_CLOEXEC);
	if (disk < 0)
		err(1, "%s", path);
	stop = mmap(NULL, PAGE_SIZE, RW, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (stop == MAP_FAILED)
		err(1, "mmap");
	pid = fork();
	if (pid < 0)
		err(1, "fork");
	if (!pid)
		_exit(hold_and_unmap(gntdev, &grants, stop));

	take_memory(leave_mib);
	while (now_ms() < begin + seconds * 1000ULL) {
		long low = write_and_read(disk, mib, round++);

		if (low < lowest)
			lowest = low;
		if (now_ms() >= next) {
			next = now_ms() + 5000;
			printf("%llu s: %u rounds, at least %ld KiB of memory were free\n",
			       (now_ms() - begin) / 1000, round, lowest);
			fflush(stdout);
		}
	}
	*stop = true;
	if (waitpid(pid, &status, 0) != pid || status)
		errx(1, "the process that holds granted pages ended with %#x", status);
	printf("rounds %u\nlowest %ld\n", round, lowest);
	return 0;
}

/* Pages of another domain. The tests of gntdev map the domain's own. */

static int grant(unsigned int count)
{
	struct grants grants;
	unsigned int i;

	if (grants_open(&grants, count, DOM0, GNTALLOC_FLAG_WRITABLE))
		err(1, "cannot grant %u pages", count);
	for (i = 0; i < count; i++) {
		fill_page(page(grants.mem, i), i);
		printf("%u ", grants.ref[i]);
	}
	printf("\n");
	fflush(stdout);
	if (daemon(1, 0))
		err(1, "daemon");
	for (;;)
		pause();
}

static void expect_pages(char *mem, unsigned int first, unsigned int count, const char *when)
{
	unsigned int i;

	for (i = first; i < first + count; i++)
		if (!page_holds(page(mem, i), i))
			errx(1, "page %u has wrong data %s", i, when);
}

static int use(domid_t domid, char **ref, unsigned int count)
{
	static char copy[PAGE_SIZE];
	grant_ref_t refs[MAX_GRANTS];
	int gntdev, disk, fd, pipes[2], status;
	unsigned int i, half = count / 2;
	size_t size = half * PAGE_SIZE;
	char *mem, *rest;
	__s64 index;
	pid_t pid;

	if (count < 2 || count > MAX_GRANTS)
		err(1, "%u grants", count);
	for (i = 0; i < count; i++)
		refs[i] = strtoul(ref[i], NULL, 10);
	gntdev = open("/dev/xen/gntdev", O_RDWR | O_CLOEXEC);
	index = gntdev < 0 ? -1 : gntdev_add(gntdev, domid, refs, count);
	if (index < 0)
		err(1, "cannot map grants of domain %u", domid);
	mem = mmap(NULL, count * PAGE_SIZE, RW, MAP_SHARED, gntdev, index);
	if (mem == MAP_FAILED || gntdev_remove(gntdev, index, count))
		err(1, "mmap of grants of domain %u", domid);
	expect_pages(mem, 0, count, "when mapped");

	/* The first half goes while a pipe holds it. */
	rest = page(mem, half);
	if (pipe(pipes) || !hold(pipes, mem, half) || munmap(mem, size))
		err(1, "hold and munmap");
	printf("%u pages of domain %u are held and unmapped\n", half, domid);
	for (i = 0; i < half; i++)
		if (!drain(pipes, copy) || !page_holds(copy, i))
			errx(1, "page %u has wrong data in the pipe", i);

	/* The other half stays. */
	disk = open("/dev/ram0", O_RDWR | O_DIRECT | O_CLOEXEC);
	if (disk < 0 || pwrite(disk, rest, size, 0) != (ssize_t)size ||
	    pread(disk, rest, size, 0) != (ssize_t)size)
		err(1, "direct I/O");
	expect_pages(mem, half, count - half, "after direct I/O");
	fd = open("/proc/self/clear_refs", O_WRONLY | O_CLOEXEC);
	if (fd < 0 || write(fd, "1", 1) != 1 || write(fd, "3", 1) != 1)
		err(1, "clear_refs");
	expect_pages(mem, half, count - half, "after clear_refs");
	if (!madvise(rest, size, MADV_DOFORK) || errno != EINVAL)
		err(1, "MADV_DOFORK is not refused");
	if (!mprotect(rest, size, PROT_READ) || errno != EACCES)
		err(1, "mprotect is not refused");
	if (mremap(rest, size, size, MREMAP_MAYMOVE | MREMAP_FIXED, mem) != MAP_FAILED ||
	    errno != EINVAL)
		err(1, "mremap is not refused");
	if (madvise(rest, size, MADV_COLD) || madvise(rest, size, MADV_PAGEOUT) ||
	    mlock(rest, size))
		err(1, "advice");
	pid = fork();
	if (!pid)
		_exit(0);
	if (pid < 0 || waitpid(pid, &status, 0) != pid || status)
		err(1, "fork");
	expect_pages(mem, half, count - half, "at the end");
	return 0;
}

/* Pages that have the bit of PG_foreign set for another reason */

static int answer(void)
{
	const struct sockaddr_in here = { .sin_family = AF_INET, .sin_port = htons(PORT) };
	int sock = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);

	if (sock < 0 || bind(sock, (const struct sockaddr *)&here, sizeof(here)))
		err(1, "port %u", PORT);
	if (daemon(1, 0))
		err(1, "daemon");
	for (;;) {
		struct sockaddr_in from;
		socklen_t size = sizeof(from);
		char data[PAYLOAD];
		ssize_t len = recvfrom(sock, data, sizeof(data), 0, (struct sockaddr *)&from, &size);

		if (len >= 0)
			sendto(sock, data, len, 0, (struct sockaddr *)&from, size);
	}
}

static __u64 read_entry(const char *path, unsigned long index)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	__u64 entry;

	if (pread(fd, &entry, sizeof(entry), index * sizeof(entry)) != sizeof(entry))
		err(1, "%s", path);
	close(fd);
	return entry;
}

/* Documentation/admin-guide/mm/pagemap.rst */
static __u64 pagemap(const void *mem)
{
	return read_entry("/proc/self/pagemap", (unsigned long)mem / PAGE_SIZE);
}

static bool is_swapped_out(const void *mem)
{
	return pagemap(mem) >> 62 & 1;
}

static bool is_in_swap_cache(const void *mem)
{
	return read_entry("/proc/kpageflags", pagemap(mem) & ((1ULL << 55) - 1)) >> 13 & 1;
}

static char *filled_pages(unsigned int count)
{
	char *mem = mmap(NULL, count * PAGE_SIZE, RW, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	unsigned int i;

	if (mem == MAP_FAILED)
		err(1, "mmap");
	for (i = 0; i < count; i++)
		fill_page(page(mem, i), i);
	return mem;
}

/* Swaps pages out, and has them read again: they stay in the swap cache then. */
static char *swap_cached(unsigned int count)
{
	char *mem = filled_pages(count);
	unsigned int i;

	if (madvise(mem, count * PAGE_SIZE, MADV_PAGEOUT))
		err(1, "MADV_PAGEOUT");
	for (i = 0; i < count; i++)
		if (!is_swapped_out(page(mem, i)))
			errx(1, "page %u was not swapped out", i);
	expect_pages(mem, 0, count, "after having been swapped");
	for (i = 0; i < count; i++)
		if (!is_in_swap_cache(page(mem, i)))
			errx(1, "page %u is not in the swap cache", i);
	return mem;
}

/* Sends the page itself, not a copy of it. */
static void send_page(int sock, char *mem)
{
	struct iovec iov = { .iov_base = mem, .iov_len = PAYLOAD };
	int pipes[2];

	if (pipe(pipes) || vmsplice(pipes[1], &iov, 1, 0) != PAYLOAD ||
	    splice(pipes[0], NULL, sock, NULL, PAYLOAD, 0) != PAYLOAD)
		err(1, "splice a page to a socket");
	close(pipes[0]);
	close(pipes[1]);
}

static int connected(const char *address, unsigned int port)
{
	struct sockaddr_in there = { .sin_family = AF_INET, .sin_port = htons(port) };
	int sock = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);

	if (inet_pton(AF_INET, address, &there.sin_addr) != 1)
		errx(1, "'%s' is not an address", address);
	if (sock < 0 || connect(sock, (struct sockaddr *)&there, sizeof(there)))
		err(1, "%s", address);
	return sock;
}

static int swapped(const char *address)
{
	const struct timeval patience = { .tv_sec = 60 };
	int sock = connected(address, PORT);
	unsigned int i, arrived = 0;
	char data[PAYLOAD];
	ssize_t len;
	char *mem;

	if (setsockopt(sock, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof(patience)))
		err(1, "%s", address);
	mem = swap_cached(HELD);
	for (i = 0; i < HELD; i++)
		send_page(sock, page(mem, i));
	/* The last one is copied, and comes back after all the others. */
	if (send(sock, "end", 3, 0) != 3)
		err(1, "send");
	while ((len = recv(sock, data, sizeof(data), 0)) == PAYLOAD) {
		for (i = 0; i < HELD && memcmp(data, page(mem, i), PAYLOAD); i++)
			;
		if (i == HELD)
			errx(1, "what has come back was not sent");
		arrived++;
	}
	if (len != 3)
		err(1, "the end has not come back");
	if (arrived != HELD)
		errx(1, "%u of %u pages have not come back", HELD - arrived, HELD);
	return 0;
}

/* Pages that a guest sends: the network gets the guest's own pages, not copies. */

static int send_pages(const char *address, unsigned int count)
{
	int sock = connected(address, PORT);
	char *mem = filled_pages(count);
	unsigned int i;

	for (i = 0; i < count; i++)
		send_page(sock, page(mem, i));
	return 0;
}

/* To another port, or they would take the room of the pages in the socket's queue. */
static int fill(const char *address, unsigned int count)
{
	int sock = connected(address, PORT + 1);

	while (count--)
		if (send(sock, "", 1, 0) != 1)
			err(1, "%s", address);
	return 0;
}

/* Which pages have come, if they are right. */
struct arrivals {
	char *mem;
	bool *seen;
	unsigned int count, left;
};

static struct arrivals arrivals(unsigned int count)
{
	struct arrivals a = {
		.mem = filled_pages(count),
		.seen = calloc(count, sizeof(bool)),
		.count = count,
		.left = count,
	};

	if (!a.seen)
		err(1, "calloc");
	return a;
}

static void arrive(struct arrivals *a, const char *data)
{
	unsigned int i;

	for (i = 0; i < a->count && memcmp(data, page(a->mem, i), PAYLOAD); i++)
		;
	if (i == a->count)
		errx(1, "what has come was not sent");
	a->left -= !a->seen[i];
	a->seen[i] = true;
}

static int receive(unsigned int count, const char *path)
{
	const struct sockaddr_in here = { .sin_family = AF_INET, .sin_port = htons(PORT) };
	int sock = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	struct arrivals a = arrivals(count);
	char data[PAYLOAD];

	if (sock < 0 || bind(sock, (const struct sockaddr *)&here, sizeof(here)))
		err(1, "port %u", PORT);
	if (daemon(1, 0))
		err(1, "daemon");
	while (a.left)
		if (recv(sock, data, sizeof(data), 0) == PAYLOAD)
			arrive(&a, data);
	return open(path, O_CREAT | O_WRONLY, 0644) < 0;
}

static int tap(const char *device, const char *mac, unsigned int count)
{
	const struct ether_addr *addr = ether_aton(mac);
	struct ifreq ifr = { .ifr_flags = IFF_TAP | IFF_NO_PI };
	struct {
		struct ether_header eth;
		struct iphdr ip;
		struct udphdr udp;
		char data[PAYLOAD];
	} __attribute__((packed)) frame;
	struct ether_header hello = { .ether_type = htons(ETHERTYPE_LOOPBACK) };
	struct arrivals a = arrivals(count);
	int fd = open("/dev/net/tun", O_RDWR | O_CLOEXEC);
	struct pollfd poller = { .fd = fd, .events = POLLIN };

	if (!addr)
		errx(1, "'%s' is not an address", mac);
	strncpy(ifr.ifr_name, device, IFNAMSIZ - 1);
	if (fd < 0 || ioctl(fd, TUNSETIFF, &ifr))
		err(1, "%s", device);
	memset(hello.ether_dhost, 0xff, ETH_ALEN);
	memcpy(hello.ether_shost, addr, ETH_ALEN);
	while (a.left) {
		int ready = poll(&poller, 1, 100);

		/* Let the bridge know where we are; it fails before the device is up. */
		if (!ready && write(fd, &hello, sizeof(hello)) < 0 && errno != EIO)
			err(1, "%s", device);
		if (ready > 0 && read(fd, &frame, sizeof(frame)) == sizeof(frame) &&
		    frame.eth.ether_type == htons(ETHERTYPE_IP) &&
		    frame.ip.protocol == IPPROTO_UDP && frame.udp.dest == htons(PORT))
			arrive(&a, frame.data);
	}
	return 0;
}

int main(int argc, char **argv)
{
	if (argc == 2 && !strcmp(argv[1], "answer"))
		return answer();
	if (argc == 3 && !strcmp(argv[1], "swapped"))
		return swapped(argv[2]);
	if (argc == 3 && !strcmp(argv[1], "grant"))
		return grant(strtoul(argv[2], NULL, 10));
	if (argc > 3 && !strcmp(argv[1], "use"))
		return use(strtoul(argv[2], NULL, 10), argv + 3, argc - 3);
	if (argc == 4 && (!strcmp(argv[1], "echo") || !strcmp(argv[1], "delay")))
		return packets_late(argv[2], strtoul(argv[3], NULL, 10), !strcmp(argv[1], "echo"));
	if (argc == 5 && !strcmp(argv[1], "listen"))
		return listen_for(argv[2], strtoul(argv[3], NULL, 10), strtoul(argv[4], NULL, 10));
	if (argc == 3 && !strcmp(argv[1], "hold"))
		return packets_hold(argv[2], true);
	if (argc == 3 && !strcmp(argv[1], "go"))
		return packets_hold(argv[2], false);
	if (argc == 4 && !strcmp(argv[1], "send"))
		return send_pages(argv[2], strtoul(argv[3], NULL, 10));
	if (argc == 4 && !strcmp(argv[1], "fill"))
		return fill(argv[2], strtoul(argv[3], NULL, 10));
	if (argc == 4 && !strcmp(argv[1], "receive"))
		return receive(strtoul(argv[2], NULL, 10), argv[3]);
	if (argc == 5 && !strcmp(argv[1], "tap"))
		return tap(argv[2], argv[3], strtoul(argv[4], NULL, 10));
	if (argc == 6 && !strcmp(argv[1], "pressure"))
		return pressure(strtoul(argv[2], NULL, 10), argv[3], strtoul(argv[4], NULL, 10),
				strtoul(argv[5], NULL, 10));
	fprintf(stderr, "usage: backend echo DEVICE MS | hold DEVICE | go DEVICE | send ADDRESS COUNT | fill ADDRESS COUNT | receive COUNT FILE | tap DEVICE MAC COUNT | pressure SECONDS DISK MIB FREE | grant COUNT | use DOMID REF... | answer | swapped ADDRESS\n");
	return 2;
}
