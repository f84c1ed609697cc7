# SPDX-License-Identifier: GPL-2.0
# Thin: each target calls one script, each of which has a --help.  They work on 7.3;
# BASE=6.12 has them work on 6.12.

export BASE

.DEFAULT_GOAL := demo

demo: ## set up, build, and show each case of the demonstration on stock and patched (the default)
	testbed/suites/demo

check: ## run the tests, about an hour
	testbed/check

check-all: ## run every test on every base, or on BASE, some hours
	testbed/check --all

soak: kernel ## let go of pages in use at random for 10 minutes, with guests (testbed/suites/soak --help)
	testbed/suites/soak

bench: ## measure stock and patched, in instructions
	testbed/suites/bench

report: ## build/report.html: what was measured, on a page to look at
	@command -v gnuplot >/dev/null || scripts/setup report
	testbed/report

setup: ## install what is missing, unpack the base and Xen
	scripts/setup

tree: setup ## build/BASE/tree: a git tree of the base with the series as commits
	scripts/apply

kernel: tree ## build/BASE/stock, patched and debug: the kernels
	scripts/kernel stock patched debug

shell: tree ## an interactive dom0 on the patched kernel
	scripts/kernel patched
	testbed/runner/dom0 shell

refresh: ## write the commits of build/BASE/tree back to the series
	scripts/refresh

dkms: ## build/dkms/xen-grant-fixes-dkms.deb: the fixes as modules for the kernel that you have
	scripts/dkms

deb: tree ## build/BASE/deb: installable kernel packages (CONFIG=debian, cloud, running or a file)
	scripts/deb "$(CONFIG)"

export: tree ## build/BASE/export: the series as mails
	scripts/export

grant-check: tree ## a program that tells whether the kernel it runs on has the faults
	testbed/suites/grant-check --build

apply: ## put the series onto your own kernel tree: make apply TREE=path
	scripts/apply-to "$(TREE)"

clean: ## remove all that was made, but for the downloads and the compiler's cache
	find build -mindepth 1 -maxdepth 1 ! -name 'apt*' ! -name cache ! -name ccache -exec rm -rf {} +

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-11s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: demo check check-all soak bench report setup tree kernel shell refresh dkms deb export grant-check apply clean help
