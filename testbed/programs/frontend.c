// SPDX-License-Identifier: GPL-2.0
/*
 * A frontend in user space, of dom0 to dom0, that does what the kernel's do not:
 *
 *   frontend vbd|vscsi ID DISK STEP...
 *
 * makes the device ID, whose backend uses the block device DISK or, for vscsi, the
 * target DISK, and goes through the steps:
 *
 *   persistent	asks for persistent grants from the next offer on
 *   offer	Initialising, and when the backend waits Initialised, with a new ring
 *   connected	waits until the backend has connected
 *   submit N	writes data that N stands for to the first pages of the disk
 *   finish	waits for the responses
 *   abort	for vscsi, asks the backend to abort what was submitted last
 *   aborted	waits until it tells that both the command and the abort have ended so
 *   write N	submit N and finish
 *   read N	reads the pages, and compares them
 *   disk FILE:N compares the pages of the block device FILE
 *   held	waits until pages of this device wait in the queue of grants to unmap
 *   aged MS	a page has waited there for so long
 *   closed	Closed, and waits until the backend is Closed
 *   mapped	some grant that was ever offered is mapped
 *   unmapped	none is
 *   released	waits until none is
 *   removed	removes the device, at once, and waits until it is gone
 *   !COMMAND	runs it
 *
 * Data and rings are new with each offer; what has been granted before stays
 * granted, so nothing that a backend does late goes unnoticed.  At the end the device
 * is removed, and everything must have been unmapped.
 */
#define _GNU_SOURCE
#include <err.h>
#include <poll.h>
#include <stdarg.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>

#include "xen_grant.h"

#include <xen/evtchn.h>

/* The domain that it runs in, and the back end, too */
#define DOM0	0

#define PAGES		8
#define OFFERS		8
#define PATIENCE_MS	30000
#define PENDING		"/sys/kernel/debug/xen/grant_unmap/pending"

/* xen/interface/io/xenbus.h, which is not exported as those below */
enum { INITIALISING = 1, INIT_WAIT, INITIALISED, CONNECTED, CLOSING, CLOSED };

/* The store: xen/interface/io/xs_wire.h */

enum { XS_READ = 2, XS_WATCH = 4, XS_WRITE = 11, XS_RM = 13, XS_WATCH_EVENT = 15, XS_ERROR };

struct xs_message {
	__u32 type, req_id, tx_id, len;
	char body[4096];
};

static int store;

static void xs_receive(struct xs_message *msg)
{
	size_t want = offsetof(struct xs_message, body), have = 0;

	while (have < want) {
		ssize_t len = read(store, (char *)msg + have, want - have);

		if (len <= 0)
			err(1, "xenstore");
		have += len;
		if (have == offsetof(struct xs_message, body))
			want += msg->len;
	}
	msg->body[msg->len] = '\0';
}

/* A watch event before the answer is dropped: who waits for one looks first. */
static bool xs_talk(struct xs_message *msg)
{
	if (write(store, msg, offsetof(struct xs_message, body) + msg->len) < 0)
		err(1, "xenstore");
	do {
		xs_receive(msg);
	} while (msg->type == XS_WATCH_EVENT);
	return msg->type != XS_ERROR;
}

static void xs_write(const char *dir, const char *name, const char *format, ...)
{
	struct xs_message msg = { .type = XS_WRITE };
	va_list args;

	msg.len = sprintf(msg.body, "%s/%s", dir, name) + 1;
	va_start(args, format);
	msg.len += vsprintf(msg.body + msg.len, format, args);
	va_end(args);
	if (!xs_talk(&msg))
		errx(1, "cannot write %s/%s: %s", dir, name, msg.body);
}

static int xs_read_number(const char *dir, const char *name)
{
	struct xs_message msg = { .type = XS_READ };

	msg.len = sprintf(msg.body, "%s/%s", dir, name) + 1;
	return xs_talk(&msg) ? atoi(msg.body) : -1;
}

static void xs_remove(const char *dir)
{
	struct xs_message msg = { .type = XS_RM };

	msg.len = sprintf(msg.body, "%s", dir) + 1;
	xs_talk(&msg);
}

static void xs_watch(const char *dir, const char *name)
{
	struct xs_message msg = { .type = XS_WATCH };

	msg.len = sprintf(msg.body, "%s/%s", dir, name) + 1;
	msg.len += sprintf(msg.body + msg.len, "watch") + 1;
	if (!xs_talk(&msg))
		errx(1, "cannot watch %s", dir);
}

/* The device */

struct device {
	const char *type;
	const char *id;
	char front[64];
	char back[64];
	bool persistent;
	struct grants offers[OFFERS];
	unsigned int count;
	struct grant_table table;
	int evtchn;
	unsigned int port;
	/* Of the last offer */
	void *data;
	grant_ref_t *ref;
	struct ring *ring;
	__u32 requests, responses;
};

/* xen/interface/io/ring.h */
struct ring {
	__u32 req_prod, req_event, rsp_prod, rsp_event;
	char pad[48];
	char entries[];
};

/* xen/interface/io/blkif.h, on x86-64 */
#define VBD_READ	0
#define VBD_WRITE	1

struct vbd_request {
	__u8 operation, segments;
	__u16 handle;
	__u64 id, sector;
	struct {
		grant_ref_t ref;
		__u8 first_sector, last_sector;
	} segment[11];
};

struct vbd_response {
	__u64 id;
	__u8 operation;
	__s16 status;
};

/* xen/interface/io/vscsiif.h */
#define VSCSI_CDB		1
#define VSCSI_ABORT		2
#define VSCSI_HOST_ABORT	(5 << 16)
#define VSCSI_ABORT_SUCCESS	0x2002
#define VSCSI_TO_DEVICE		1
#define VSCSI_FROM_DEVICE	2
#define READ_10			0x28
#define WRITE_10		0x2a

struct vscsi_request {
	__u16 id;
	__u8 act, cdb_len, cdb[16];
	__u16 timeout, channel, target, lun, ref_id;
	__u8 direction, segments;
	struct {
		grant_ref_t ref;
		__u16 offset, length;
	} segment[26];
	__u32 reserved[3];
};

struct vscsi_response {
	__u16 id;
	__u8 pad, sense_len, sense[96];
	__s32 result;
	__u32 residual, reserved[36];
};

static bool is_scsi(const struct device *dev)
{
	return !strcmp(dev->type, "vscsi");
}

static __u32 stamp(unsigned int n, unsigned int i)
{
	return n * 1000 + i;
}

static void set_state(struct device *dev, int state)
{
	xs_write(dev->front, "state", "%d", state);
}

static void wait_for_state(struct device *dev, int state)
{
	__u64 deadline = now_ms() + PATIENCE_MS;
	struct pollfd event = { .fd = store, .events = POLLIN };
	struct xs_message msg;
	int now;

	while ((now = xs_read_number(dev->back, "state")) != state) {
		__u64 time = now_ms();

		if (time >= deadline || poll(&event, 1, deadline - time) != 1)
			errx(1, "the backend is in state %d, not %d", now, state);
		xs_receive(&msg);
	}
}

static void create(struct device *dev, const char *disk)
{
	char node[256];
	struct stat st;

	sprintf(dev->front, "/local/domain/0/test/%s/%s", dev->type, dev->id);
	sprintf(dev->back, "/local/domain/0/backend/%s/0/%s", dev->type, dev->id);
	xs_write(dev->front, "backend", "%s", dev->back);
	xs_write(dev->front, "backend-id", "0");
	set_state(dev, INITIALISING);
	xs_write(dev->back, "frontend", "%s", dev->front);
	xs_write(dev->back, "frontend-id", "0");
	xs_write(dev->back, "online", "1");
	if (is_scsi(dev)) {
		xs_write(dev->back, "vscsi-devs/dev-0/p-dev", "%s", disk);
		xs_write(dev->back, "vscsi-devs/dev-0/v-dev", "0:0:0:0");
		xs_write(dev->back, "vscsi-devs/dev-0/state", "%d", INITIALISING);
	} else {
		if (stat(disk, &st) || !S_ISBLK(st.st_mode))
			err(1, "%s is no disk", disk);
		sprintf(node, "%x:%x", major(st.st_rdev), minor(st.st_rdev));
		xs_write(dev->back, "params", "%s", disk);
		xs_write(dev->back, "dev", "%s", disk);
		xs_write(dev->back, "mode", "w");
		xs_write(dev->back, "physical-device", "%s", node);
	}
	/* With this node the device is there. */
	xs_write(dev->back, "state", "%d", INITIALISING);
	xs_watch(dev->back, "state");
}

static bool is_present(const struct device *dev)
{
	char path[128];

	sprintf(path, "/sys/bus/xen-backend/devices/%s-0-%s", dev->type, dev->id);
	return !access(path, F_OK);
}

static void remove_device(const struct device *dev)
{
	xs_remove(dev->front);
	xs_remove(dev->back);
	if (!wait_for(!is_present(dev)))
		errx(1, "the device does not go");
}

static unsigned int count_mapped(const struct device *dev)
{
	unsigned int offer, i, mapped = 0;

	for (offer = 0; offer < dev->count; offer++)
		for (i = 0; i < dev->offers[offer].count; i++)
			mapped += grant_mapped(&dev->table, dev->offers[offer].ref[i]);
	return mapped;
}

static void offer(struct device *dev)
{
	struct ioctl_evtchn_bind_unbound_port bind = { .remote_domain = DOM0 };
	struct grants *g = &dev->offers[dev->count];
	int port;

	if (dev->count == OFFERS || grants_open(g, 1 + PAGES, DOM0, GNTALLOC_FLAG_WRITABLE))
		err(1, "cannot grant pages");
	dev->count++;
	/* The table may have grown. */
	grant_table_close(&dev->table);
	if (grant_table_open(&dev->table))
		err(1, "grant table");
	port = ioctl(dev->evtchn, IOCTL_EVTCHN_BIND_UNBOUND_PORT, &bind);
	if (port < 0)
		err(1, "event channel");
	dev->port = port;
	dev->ring = (struct ring *)g->mem;
	memset(dev->ring, 0, PAGE_SIZE);
	dev->ring->req_event = dev->ring->rsp_event = 1;
	dev->data = page(g->mem, 1);
	dev->ref = g->ref + 1;
	dev->requests = dev->responses = 0;

	set_state(dev, INITIALISING);
	/* scsiback is never in this state again. */
	if (!is_scsi(dev) || dev->count == 1)
		wait_for_state(dev, INIT_WAIT);
	xs_write(dev->front, "ring-ref", "%u", g->ref[0]);
	xs_write(dev->front, "event-channel", "%u", dev->port);
	xs_write(dev->front, "protocol", "x86_64-abi");
	xs_write(dev->front, "feature-persistent", "%d", dev->persistent);
	set_state(dev, INITIALISED);
}

static void vbd_request(struct device *dev, struct vbd_request *req, bool is_write)
{
	unsigned int i;

	req->operation = is_write ? VBD_WRITE : VBD_READ;
	req->segments = PAGES;
	req->id = dev->requests;
	for (i = 0; i < PAGES; i++) {
		req->segment[i].ref = dev->ref[i];
		req->segment[i].last_sector = PAGE_SIZE / 512 - 1;
	}
}

static void vscsi_request(struct device *dev, struct vscsi_request *req, bool is_write)
{
	unsigned int i;

	req->id = dev->requests;
	req->act = VSCSI_CDB;
	req->cdb_len = 10;
	req->cdb[0] = is_write ? WRITE_10 : READ_10;
	req->cdb[8] = PAGES * PAGE_SIZE / 512;
	req->direction = is_write ? VSCSI_TO_DEVICE : VSCSI_FROM_DEVICE;
	req->segments = PAGES;
	for (i = 0; i < PAGES; i++) {
		req->segment[i].ref = dev->ref[i];
		req->segment[i].length = PAGE_SIZE;
	}
}

static void push_request(struct device *dev)
{
	struct ioctl_evtchn_notify notify = { .port = dev->port };

	dev->requests++;
	__atomic_store_n(&dev->ring->req_prod, dev->requests, __ATOMIC_RELEASE);
	if (ioctl(dev->evtchn, IOCTL_EVTCHN_NOTIFY, &notify))
		err(1, "notify");
}

/* The pages are in one request only at a time. */
static void submit(struct device *dev, bool is_write)
{
	/* A ring has room for more than a test asks for: no entry is used again. */
	if (is_scsi(dev))
		vscsi_request(dev, (struct vscsi_request *)dev->ring->entries + dev->requests,
			      is_write);
	else
		vbd_request(dev, (struct vbd_request *)dev->ring->entries + dev->requests,
			    is_write);
	push_request(dev);
}

/* An entry is as large as a request. */
static int status(const struct device *dev, unsigned int i)
{
	if (is_scsi(dev)) {
		struct vscsi_request *req = (void *)dev->ring->entries;

		return ((struct vscsi_response *)&req[i])->result;
	} else {
		struct vbd_request *req = (void *)dev->ring->entries;

		return ((struct vbd_response *)&req[i])->status;
	}
}

static void wait_for_event(struct device *dev, __u64 deadline)
{
	struct pollfd event = { .fd = dev->evtchn, .events = POLLIN };
	__u64 now = now_ms();
	__u32 port;

	if (now >= deadline || poll(&event, 1, deadline - now) != 1)
		errx(1, "no response");
	/* Enable the event again. */
	if (read(dev->evtchn, &port, sizeof(port)) != sizeof(port) ||
	    write(dev->evtchn, &port, sizeof(port)) != sizeof(port))
		err(1, "event");
}

static void wait_for_response(struct device *dev, __u64 deadline)
{
	__atomic_store_n(&dev->ring->rsp_event, dev->responses + 1, __ATOMIC_SEQ_CST);
	while (__atomic_load_n(&dev->ring->rsp_prod, __ATOMIC_SEQ_CST) == dev->responses)
		wait_for_event(dev, deadline);
	dev->responses++;
}

static void finish(struct device *dev)
{
	__u64 deadline = now_ms() + PATIENCE_MS;

	while (dev->responses < dev->requests) {
		wait_for_response(dev, deadline);
		if (status(dev, dev->responses - 1))
			errx(1, "a request failed: %#x", status(dev, dev->responses - 1));
	}
}

static void abort_last(struct device *dev)
{
	struct vscsi_request *req = (struct vscsi_request *)dev->ring->entries + dev->requests;

	req->id = dev->requests;
	req->act = VSCSI_ABORT;
	req->ref_id = dev->requests - 1;
	push_request(dev);
}

static void expect_aborted(struct device *dev)
{
	__u64 deadline = now_ms() + PATIENCE_MS;
	bool ended[2] = { };
	unsigned int i;

	for (i = 0; i < 2; i++) {
		struct vscsi_response *response =
			(void *)((struct vscsi_request *)dev->ring->entries + dev->responses);
		bool is_abort;

		wait_for_response(dev, deadline);
		is_abort = response->id == dev->requests - 1;
		if (response->result != (is_abort ? VSCSI_ABORT_SUCCESS : VSCSI_HOST_ABORT))
			errx(1, "the %s has the result %#x", is_abort ? "abort" : "command",
			     response->result);
		ended[is_abort] = true;
	}
	if (!ended[0] || !ended[1])
		errx(1, "the %s has not ended", ended[0] ? "abort" : "command");
}

static void submit_write(struct device *dev, unsigned int n)
{
	unsigned int i;

	for (i = 0; i < PAGES; i++)
		fill_page(page(dev->data, i), stamp(n, i));
	submit(dev, true);
}

static void expect_data(void *mem, unsigned int n, const char *where)
{
	unsigned int i;

	for (i = 0; i < PAGES; i++)
		if (!page_holds(page(mem, i), stamp(n, i)))
			errx(1, "page %u has wrong data %s", i, where);
}

static void read_and_compare(struct device *dev, unsigned int n)
{
	memset(dev->data, 0, PAGES * PAGE_SIZE);
	submit(dev, false);
	finish(dev);
	expect_data(dev->data, n, "when read");
}

static void compare_disk(const char *arg)
{
	static char mem[PAGES * PAGE_SIZE] __attribute__((aligned(PAGE_SIZE)));
	const char *colon = strchr(arg, ':');
	char *path = strndup(arg, colon - arg);
	int fd = open(path, O_RDONLY | O_DIRECT | O_CLOEXEC);

	if (fd < 0 || pread(fd, mem, sizeof(mem), 0) != sizeof(mem))
		err(1, "%s", path);
	close(fd);
	expect_data(mem, atoi(colon + 1), "on the disk");
	free(path);
}

/* For how many ms a page of the device has waited to be unmapped, or -1 */
static long waited_ms(const struct device *dev)
{
	char line[256], owner[64];
	FILE *file = fopen(PENDING, "r");
	long longest = -1;

	if (!file)
		err(1, "%s", PENDING);
	sprintf(owner, " %sback/0/%s ", is_scsi(dev) ? "scsi" : "blk", dev->id);
	while (fgets(line, sizeof(line), file))
		if (strstr(line, owner) && atol(line) > longest)
			longest = atol(line);
	fclose(file);
	return longest;
}

static void expect_waited(const struct device *dev, long ms)
{
	long waited = waited_ms(dev);

	if (waited < ms)
		errx(1, "pages have waited for %ld ms only", waited);
}

static void expect_mapped(const struct device *dev, bool want)
{
	unsigned int mapped = count_mapped(dev);

	if (!mapped == want)
		errx(1, "%u grants are mapped", mapped);
}

/* Returns false if there is no such step with or without an argument. */
static bool do_step(struct device *dev, const char *step, const char *arg)
{
	bool has_number = arg && *arg;

	if (*step == '!') {
		if (system(step + 1))
			errx(1, "'%s' failed", step + 1);
	} else if (!strcmp(step, "persistent")) {
		dev->persistent = true;
	} else if (!strcmp(step, "offer")) {
		offer(dev);
	} else if (!strcmp(step, "connected")) {
		wait_for_state(dev, CONNECTED);
		if (is_scsi(dev))
			set_state(dev, CONNECTED);
	} else if (!strcmp(step, "finish")) {
		finish(dev);
	} else if (is_scsi(dev) && !strcmp(step, "abort")) {
		abort_last(dev);
	} else if (is_scsi(dev) && !strcmp(step, "aborted")) {
		expect_aborted(dev);
	} else if (!strcmp(step, "held")) {
		if (!wait_for(waited_ms(dev) >= 0))
			errx(1, "no page is held");
	} else if (!strcmp(step, "closed")) {
		/* scsiback disconnects in this state only. */
		if (is_scsi(dev)) {
			set_state(dev, CLOSING);
			wait_for_state(dev, CLOSING);
		}
		set_state(dev, CLOSED);
		wait_for_state(dev, CLOSED);
	} else if (!strcmp(step, "removed")) {
		remove_device(dev);
	} else if (!strcmp(step, "mapped")) {
		expect_mapped(dev, true);
	} else if (!strcmp(step, "unmapped")) {
		expect_mapped(dev, false);
	} else if (!strcmp(step, "released")) {
		if (!wait_for(!count_mapped(dev)))
			errx(1, "%u grants are still mapped", count_mapped(dev));
	} else if (has_number && !strcmp(step, "aged")) {
		expect_waited(dev, atol(arg));
	} else if (has_number && !strcmp(step, "submit")) {
		submit_write(dev, atoi(arg));
	} else if (has_number && !strcmp(step, "write")) {
		submit_write(dev, atoi(arg));
		finish(dev);
	} else if (has_number && !strcmp(step, "read")) {
		read_and_compare(dev, atoi(arg));
	} else if (has_number && !strcmp(step, "disk") && strchr(arg, ':')) {
		compare_disk(arg);
	} else {
		return false;
	}
	return true;
}

static bool has_argument(const char *step)
{
	return !strcmp(step, "submit") || !strcmp(step, "write") || !strcmp(step, "read") ||
	       !strcmp(step, "disk") || !strcmp(step, "aged");
}

int main(int argc, char **argv)
{
	static struct device dev;
	int i;

	if (argc < 4 || (strcmp(argv[1], "vbd") && strcmp(argv[1], "vscsi")))
		errx(2, "usage: see the source");
	setvbuf(stdout, NULL, _IOLBF, 0);
	dev.type = argv[1];
	dev.id = argv[2];
	store = open("/dev/xen/xenbus", O_RDWR | O_CLOEXEC);
	if (store < 0)
		err(1, "/dev/xen/xenbus");
	dev.evtchn = open("/dev/xen/evtchn", O_RDWR | O_CLOEXEC);
	if (dev.evtchn < 0)
		err(1, "/dev/xen/evtchn");
	create(&dev, argv[3]);
	for (i = 4; i < argc; i++) {
		const char *step = argv[i], *arg = has_argument(step) ? argv[++i] : NULL;
		__u64 begin = now_ms();

		printf("%s-%s: %s %s\n", dev.type, dev.id, step, arg ?: "");
		if (!do_step(&dev, step, arg))
			errx(2, "no step '%s'", step);
		printf("%s-%s: %s took %llu ms\n", dev.type, dev.id, step, now_ms() - begin);
	}
	remove_device(&dev);
	if (!wait_for(!count_mapped(&dev)))
		errx(1, "%u grants are still mapped", count_mapped(&dev));
	return 0;
}
