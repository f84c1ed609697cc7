# SPDX-License-Identifier: GPL-2.0
"""Finds the faults that a kernel or Xen reports on its console."""

import re
from typing import NamedTuple


class Pattern(NamedTuple):
    """How a report begins, where it ends, and a line that begins one.

    end: 'trace'   with its call trace and the registers after it
         'marker'  with "---[ end trace" or, without one, like 'trace'
         'line'    it is one line
    """
    regex: str
    end: str
    example: str


LINUX = [
    Pattern(r'-+\[ cut here \]-+', 'marker', '------------[ cut here ]------------'),
    Pattern(r'WARNING: .*, CPU#\d+: ', 'marker',
            'WARNING: drivers/xen/gntdev.c:418 at __unmap_grant_pages_done+0x94/0x150, CPU#0: test/71'),
    Pattern(r'WARNING: possible (circular|recursive) locking', 'trace',
            'WARNING: possible circular locking dependency detected'),
    Pattern(r'WARNING: suspicious RCU usage', 'trace', 'WARNING: suspicious RCU usage'),
    Pattern(r'WARNING: inconsistent lock state', 'trace', 'WARNING: inconsistent lock state'),
    Pattern(r'WARNING: (bad unlock balance|held lock freed|lock held|.*(lock|irq))', 'trace',
            'WARNING: bad unlock balance detected!'),
    Pattern(r'\[ BUG: .* \]', 'trace', '[ BUG: Invalid wait context ]'),
    Pattern(r'INFO: trying to register non-static key', 'trace',
            'INFO: trying to register non-static key.'),
    Pattern(r'WARNING: CPU: \d+ PID: ', 'marker',
            'WARNING: CPU: 0 PID: 71 at drivers/xen/gntdev.c:418 '
            '__unmap_grant_pages_done+0x94/0x150'),
    Pattern(r'WARNING:', 'trace', 'WARNING: stack going in the wrong direction? at dump_stack+0x12/0x34'),
    Pattern(r'BUG: Bad rss-counter', 'line',
            'BUG: Bad rss-counter state mm:ffff888003f4ea80 type:MM_FILEPAGES val:-1'),
    Pattern(r'BUG: non-zero pgtables_bytes', 'line',
            'BUG: non-zero pgtables_bytes on freeing mm: -4096'),
    Pattern(r'BUG: Bad page (state|map|cache)', 'trace',
            'BUG: Bad page map in process test  pte:8000000012345027 pmd:0ab4a067'),
    Pattern(r'Bad page', 'trace', 'Bad page state in process test  pfn:03f4e'),
    Pattern(r'page(: | dumped because)', 'line', 'page dumped because: nonzero _refcount'),
    Pattern(r'BUG: KFENCE: ', 'trace', 'BUG: KFENCE: use-after-free read in test_read+0x12/0x34'),
    Pattern(r'BUG: KASAN: ', 'trace', 'BUG: KASAN: slab-use-after-free in test_read+0x12/0x34'),
    Pattern(r'BUG: sleeping function called from invalid context', 'trace',
            'BUG: sleeping function called from invalid context at kernel/locking/mutex.c:585'),
    Pattern(r'BUG: scheduling while atomic', 'trace',
            'BUG: scheduling while atomic: test/71/0x00000002'),
    Pattern(r'BUG: (unable to handle|kernel NULL)', 'marker',
            'BUG: unable to handle page fault for address: ffffc90000123000'),
    Pattern(r'BUG[: ]', 'trace', 'BUG kmalloc-64 (Not tainted): Poison overwritten'),
    Pattern(r'watchdog: (BUG|Watchdog detected)', 'trace',
            'watchdog: BUG: soft lockup - CPU#0 stuck for 26s! [test:71]'),
    Pattern(r'kernel BUG at ', 'marker', 'kernel BUG at drivers/block/xen-blkback/blkback.c:772!'),
    Pattern(r'(Oops: )?(general protection fault|invalid opcode|divide error|double fault'
            r'|stack segment|int3|control protection)', 'marker',
            'general protection fault, probably for non-canonical address 0xdead000000000100: '
            '0000 [#1] PREEMPT SMP NOPTI'),
    Pattern(r'Oops', 'marker', 'Oops: Oops: 0002 [#1] SMP NOPTI'),
    Pattern(r'Internal error: ', 'marker', 'Internal error: Oops: 0000000096000005 [#1]  SMP'),
    Pattern(r'Unhandled .* exception on CPU', 'trace',
            'Unhandled 64-bit el1h sync exception on CPU0, ESR 0x0000000002000000 -- BTI'),
    Pattern(r'SError Interrupt on CPU', 'trace',
            'SError Interrupt on CPU0, code 0x00000000be000011 -- SError'),
    Pattern(r'Insufficient stack space', 'trace', 'Insufficient stack space to handle exception!'),
    Pattern(r'.*[Uu]nable to handle (kernel|page|NULL)', 'marker',
            'Unable to handle kernel paging request at virtual address dead000000000100'),
    Pattern(r'Kernel panic - not syncing', 'trace',
            'Kernel panic - not syncing: Attempted to kill init! exitcode=0x0000000b'),
    Pattern(r'INFO: task .* blocked for more than', 'trace',
            'INFO: task test:71 blocked for more than 122 seconds.'),
    Pattern(r'(rcu: )?INFO: rcu_\w+ (self-)?detected ', 'trace',
            'rcu: INFO: rcu_preempt self-detected stall on CPU'),
    Pattern(r'rcu: .* starved for', 'trace',
            'rcu: rcu_preempt kthread starved for 2100 jiffies! g-1087 f0x0 RCU_GP_WAIT_FQS(5)'),
    Pattern(r'ODEBUG: (?!selftest|\d+ of )', 'line',
            'ODEBUG: init active (active state 0) object: ffffc900 object type: work_struct'),
    Pattern(r'list_(add|del)\w* corruption', 'line',
            'list_del corruption. prev->next should be ffff888003f4ea80, but was dead000000000122'),
    Pattern(r'refcount_t: ', 'line', 'refcount_t: saturated; leaking memory.'),
    Pattern(r'.*page_table_check: ', 'line', 'page_table_check: unexpected count 1 on pfn 3f4e'),
    Pattern(r'pagealloc: (memory corruption|single bit error)', 'trace',
            'pagealloc: memory corruption'),
    Pattern(r'UBSAN: ', 'trace', 'UBSAN: array-index-out-of-bounds in mm/memory.c:12:3'),
    Pattern(r'kmemleak: \d+ new suspected', 'line', 'kmemleak: 3 new suspected memory leaks'),
    Pattern(r'xen:\w+: failed to unmap grant', 'line',
            'xen:xen_gntdev: failed to unmap grant 8 of domain 0 (user): -1'),
    Pattern(r'irq \d+: nobody cared', 'trace',
            'irq 9: nobody cared (try booting with the "irqpoll" option)'),
    Pattern(r'Fixing recursive fault', 'line', 'Fixing recursive fault but reboot is needed!'),
    Pattern(r'Call [Tt]race:', 'trace', 'Call Trace:'),
]

XEN = [
    Pattern(r'.*Panic on CPU', 'line', 'Panic on CPU 0:'),
    Pattern(r'.*Xen (BUG|WARN) at ', 'line', 'Xen BUG at common/grant_table.c:1234'),
    Pattern(r'Assertion .* failed', 'line', "Assertion 'rc == 0' failed at arch/x86/mm.c:2345"),
    Pattern(r'.*Xen call trace', 'line', 'Xen call trace:'),
    Pattern(r'.*domain_crash', 'line',
            'domain_crash called from arch/x86/pv/traps.c:123'),
    Pattern(r'Hypervisor Trap', 'line', 'Hypervisor Trap. HSR=0x00000096000006 EC=0x25 IL=1 Syndrome=0x6'),
    Pattern(r'.*(Domain|Dom0).* crashed', 'line', 'Hardware Dom0 crashed: rebooting machine in 5 seconds.'),
    Pattern(r'Watchdog timer', 'line', 'Watchdog timer detects that CPU0 is stuck!'),
    Pattern(r'\S+\.c:\d+:d', 'line', 'mm.c:3520:d0v0 Could not get page ref for mfn 123456'),
    Pattern(r'(grant_table|mm)\.c:', 'line', 'grant_table.c:803: Bad flags (0) or dom (0)'),
    Pattern(r'd(\d+|\[\w+\])(v\d+)?[ :](?! ?(has maximum|extended region|vGIC[DR]: .*unhandled .* ICACTIVER))', 'line',
            'd0v0 Unhandled page fault fault/trap [#14, ec=0002]'),
]

# What may follow a call trace in its report.
AFTER_TRACE = re.compile(
    r'(\s|</?\w+>|RIP|R[A-DS][XIP]|RBP|RDI|R\d\d|[FCD]S|CR\d|DR\d|EFLAGS|Code:|Modules linked in|---\[|note: '
    r'|irq event stamp|hardirqs|softirqs|Kernel Offset|Disabling lock debugging|$)')
# Lines that begin a report only where they are not a part of one.
HEADLINE = re.compile(r'WARNING: |kernel BUG at ')
OOPS = re.compile(r'Oops|Internal error: |invalid opcode|general protection')
DETAIL = re.compile(r'Call [Tt]race:|page(: | dumped)|list_|refcount_t: |ODEBUG: |.*page_table_check: ')
TIMESTAMP = re.compile(r'^\[ *(\d+\.\d+)\](?:\[ *[TC]\d+\])? ?')
LONGEST = 250   # lines of a report
PAUSE = 1       # seconds of silence that end a report


class Report:
    """A fault: where it was reported, and what was said."""

    def __init__(self, source, pattern, line):
        self.source = source
        self.end = pattern.end
        self.lines = [line]
        self.headed = self.oops = self.traced = self.ended = False
        self.note(strip(line))

    def note(self, text):
        """Keeps track of how far the report has come."""
        self.headed |= 'cut here' not in text and bool(HEADLINE.match(text))
        self.oops |= bool(OOPS.match(text))
        self.traced |= 'call trace:' in text.lower()
        self.ended |= bool(re.match(r'---\[ end ', text)
                           or self.end == 'trace' and text.startswith(' </TASK>'))

    def takes(self, line):
        """Is this line a part of the report?"""
        text = strip(line)
        if len(self.lines) >= LONGEST or seconds(line) > seconds(self.lines[-1]) + PAUSE:
            return False
        if self.ended:
            return bool(AFTER_TRACE.match(text)) and not begins(text)
        if begins(text):
            return not self.traced and bool(
                HEADLINE.match(text) and not self.headed and 'cut here' in self.lines[0]
                or OOPS.match(text) and not self.oops and self.end == 'marker'
                or DETAIL.match(text))
        return not self.traced or bool(AFTER_TRACE.match(text))

    @property
    def text(self):
        return '\n'.join(self.lines)

    @property
    def title(self):
        """The first line that says what happened."""
        for line in self.lines:
            if 'cut here' not in line and line.strip('= -'):
                return strip(line)
        return strip(self.lines[0])


def strip(line):
    return TIMESTAMP.sub('', line)


def seconds(line):
    match = TIMESTAMP.match(line)
    return float(match[1]) if match else 0


def begins(text):
    return any(re.match(pattern.regex, text) for pattern in LINUX)


class Scanner:
    """Takes the console's lines of one machine, keeps the reports among them."""

    def __init__(self, source):
        self.source = source
        self.reports = []
        self.open = None        # the report that the next line may belong to

    def feed(self, line):
        """Returns the report that begins with this line, or None."""
        if line.startswith('(XEN)'):
            # Xen's lines may stand in the middle of a report of the kernel.
            text = re.sub(r'^\(XEN\) (\[[^]]*\] )?', '', line)
            return self._begin('Xen', text, line, XEN)
        if self.open and self.open.takes(line):
            self.open.lines.append(line)
            self.open.note(strip(line))
            return None
        self.open = None
        return self._begin(self.source, strip(line), line, LINUX)

    def _begin(self, source, text, line, patterns):
        for pattern in patterns:
            if re.match(pattern.regex, text):
                report = Report(source, pattern, line)
                self.reports.append(report)
                if patterns is LINUX and pattern.end != 'line':
                    self.open = report
                return report
        return None


class AllowList:
    """Reports that the base kernel is known to make: a regex and its reason a line."""

    def __init__(self, path):
        self.entries = []
        with open(path, encoding='utf-8') as f:
            for nr, line in enumerate(f, 1):
                line = line.strip()
                if not line or line.startswith('#'):
                    continue
                regex, separator, reason = line.rpartition(' # ')
                if not separator or not regex.strip() or not reason.strip():
                    raise ValueError(f'{path}:{nr}: no reason given; write "REGEX # REASON"')
                try:
                    self.entries.append((re.compile(regex.strip()), reason.strip()))
                except re.error as error:
                    raise ValueError(f'{path}:{nr}: not a regular expression: {error}') from None

    def match(self, report):
        """Returns the reason why the report is allowed, or None."""
        for regex, reason in self.entries:
            if regex.search(report.text):
                return regex.pattern, reason
        return None
