/* SPDX-License-Identifier: GPL-2.0 */
#undef TRACE_SYSTEM
#define TRACE_SYSTEM xen_grant_unmap

#if !defined(_TRACE_XEN_GRANT_UNMAP_H) || defined(TRACE_HEADER_MULTI_READ)
#define _TRACE_XEN_GRANT_UNMAP_H

#include <linux/tracepoint.h>

/* Pages of a request wait in the queue from now on. */
TRACE_EVENT(grant_unmap_defer,
	    TP_PROTO(const char *owner, unsigned int pages, unsigned int pending),
	    TP_ARGS(owner, pages, pending),
	    TP_STRUCT__entry(__string(owner, owner)
			     __field(unsigned int, pages)
			     __field(unsigned int, pending)
			    ),
	    TP_fast_assign(__assign_str(owner);
			   __entry->pages = pages;
			   __entry->pending = pending;
			  ),
	    TP_printk("owner=%s pages=%u pending=%u",
		      __get_str(owner), __entry->pages, __entry->pending)
	   );

/* A pass has tried the pages of all requests that were due. */
TRACE_EVENT(grant_unmap_pass,
	    TP_PROTO(unsigned int attempted, unsigned int unmapped, unsigned int left),
	    TP_ARGS(attempted, unmapped, left),
	    TP_STRUCT__entry(__field(unsigned int, attempted)
			     __field(unsigned int, unmapped)
			     __field(unsigned int, left)
			    ),
	    TP_fast_assign(__entry->attempted = attempted;
			   __entry->unmapped = unmapped;
			   __entry->left = left;
			  ),
	    TP_printk("attempted=%u unmapped=%u left=%u",
		      __entry->attempted, __entry->unmapped, __entry->left)
	   );

/* A request leaves the queue. */
TRACE_EVENT(grant_unmap_done,
	    TP_PROTO(const char *owner, unsigned int pages, unsigned int failed,
		     unsigned int waited_ms),
	    TP_ARGS(owner, pages, failed, waited_ms),
	    TP_STRUCT__entry(__string(owner, owner)
			     __field(unsigned int, pages)
			     __field(unsigned int, failed)
			     __field(unsigned int, waited_ms)
			    ),
	    TP_fast_assign(__assign_str(owner);
			   __entry->pages = pages;
			   __entry->failed = failed;
			   __entry->waited_ms = waited_ms;
			  ),
	    TP_printk("owner=%s pages=%u failed=%u waited_ms=%u",
		      __get_str(owner), __entry->pages, __entry->failed,
		      __entry->waited_ms)
	   );

#endif /* _TRACE_XEN_GRANT_UNMAP_H */

#include <trace/define_trace.h>
