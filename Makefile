# Two commands do all the set-up: `make demo` runs the main job on real input, `make test` runs every check.

DEMO_PACKAGES = mmdebstrap=mmdebstrap mkfs.ext4=e2fsprogs systemd-nspawn=systemd-container nsenter=util-linux
TEST_PACKAGES = $(DEMO_PACKAGES) gcc=gcc casync=casync dbus-daemon=dbus-daemon grub-editenv=grub-common grub-emu=grub-emu \
    chromium=chromium nginx=nginx-light initdb=postgresql zstd=zstd mkfs.erofs=erofs-utils mksquashfs=squashfs-tools
BENCH_PACKAGES = $(TEST_PACKAGES) xdelta3=xdelta3

PYTHON = .venv/bin/python

.PHONY: demo test check bench data clean

## demo: publish two real Debian images, update a virtual device, roll back a bad release
demo:
	@.ci/setup server $(DEMO_PACKAGES)
	@$(PYTHON) -m examples.demo

## test: install what the tests need, then run every check and every test
test:
	@.ci/setup test $(TEST_PACKAGES)
	@$(MAKE) --no-print-directory check
	$(PYTHON) -m pytest -q -n 2 --dist loadgroup

## check: formatting, lint, types, floors of the house
check:
	.venv/bin/ruff format --check .
	.venv/bin/ruff check .
	.venv/bin/mypy
	.venv/bin/lint-imports --no-cache

## bench: compare with the peers in the same run; make the data first with `make data DATA=dir`
bench:
	@.ci/setup test $(BENCH_PACKAGES)
	$(PYTHON) -m benchmarks $(DATA)

## data: make the standard benchmark pair P1 from Debian (about 6 GB, 5 to 15 minutes)
data:
	@.ci/setup test $(BENCH_PACKAGES)
	benchmarks/make-data.sh $(DATA)

clean:
	rm -rf .venv demo-work build dist .mypy_cache .ruff_cache .pytest_cache
