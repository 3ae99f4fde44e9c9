"""What systems of guests are made of: Debian's cloud kernel, busybox, and this machine's Python with some modules."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from tests.debian import cache_directory
from tests.tools import need, need_file

#: Where Python looks for its modules below its home.
PYTHON_LIBRARIES = f"lib/python{sys.version_info.major}.{sys.version_info.minor}"
#: To be run after imports: prints the name and the file of each module that is loaded then.
PRINT_MODULES = """
import json, sys
print(json.dumps([[name, module.__file__] for name, module in sorted(sys.modules.items())
    if getattr(module, "__file__", None) and name != "__main__"]))
"""


def unpack_kernel(directory: Path, modules: Sequence[str]) -> tuple[Path, tuple[Path, ...]]:
    """Return the kernel and the files of `modules` with all they need, in the order in which they are to be loaded.

    Its package is not installed: a kernel on this machine would be set up to boot it.
    """
    unpack_package(_kernel_package(), directory)
    (folder,) = (directory / "lib/modules").iterdir()
    subprocess.run([need("depmod"), "-b", directory, folder.name], check=True)
    command = [need("modprobe"), "-d", str(directory), "-S", folder.name, "--show-depends", "-a", *modules]
    listed = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    (kernel,) = (directory / "boot").glob("vmlinuz-*")
    return kernel, tuple(Path(line.split()[1]) for line in dict.fromkeys(listed) if line.startswith("insmod"))


def unpack_package(package: str, directory: Path) -> None:
    """Unpack a package of Debian, which is not installed: this machine is not what it is for."""
    cache = cache_directory() / package
    if not list(cache.glob("*.deb")):
        cache.mkdir(exist_ok=True)
        subprocess.run(["apt-get", "download", "-qq", package], cwd=cache, check=True, capture_output=True)
    subprocess.run(["dpkg", "-x", next(cache.glob("*.deb")), directory], check=True)


def _kernel_package() -> str:
    """Return the package that linux-image-cloud-amd64 stands for; apt is asked to look again when it knows none."""
    command = ["apt-cache", "depends", "linux-image-cloud-amd64"]
    for is_last in (False, True):
        shown = subprocess.run(command, check=False, capture_output=True, text=True)
        package = re.search(r"Depends: (linux-image-\S+)", shown.stdout)
        if package is not None:
            return package[1]
        if not is_last:
            subprocess.run(["apt-get", "update", "-qq"], check=True, capture_output=True)
    raise AssertionError("apt does not know the package linux-image-cloud-amd64")


def put_busybox(directory: Path) -> None:
    """Put busybox with all its names into a directory for programs."""
    shutil.copy(need_file(Path("/bin/busybox"), package="busybox-static"), directory / "busybox")
    is_dynamic = subprocess.run(["ldd", "/bin/busybox"], check=False, capture_output=True).returncode == 0
    assert not is_dynamic, "/bin/busybox needs libraries; install busybox-static in its place"
    listed = subprocess.run(["/bin/busybox", "--list"], check=True, capture_output=True, text=True).stdout.split()
    for name in listed:
        if name != "busybox":
            (directory / name).symlink_to("busybox")


def put_python(program: Path, *, home: Path, shared: Path, listing: str) -> None:
    """Put this machine's Python at `program`, with the modules that the program `listing` prints.

    Args:
        program: The interpreter.
        home: What `PYTHONHOME` will name; the modules lie below.
        shared: Where its shared libraries go.
        listing: Run on this machine; prints pairs of name and file as JSON.
    """
    listed = subprocess.run([sys.executable, "-c", listing], check=True, capture_output=True, text=True).stdout
    libraries = home / PYTHON_LIBRARIES
    binaries = [Path(sys.executable).resolve()]
    for name, file in json.loads(listed):
        source = Path(file)
        parts = name.split(".")
        if source.name.startswith("__init__."):
            target = libraries.joinpath(*parts, source.name)
        elif len(parts) == 1 and source.suffix == ".so":
            target = libraries / "lib-dynload" / source.name
        else:
            target = libraries.joinpath(*parts[:-1], source.name)
        copy_to(source, target)
        if source.suffix == ".so":
            binaries.append(source)
    copy_to(binaries[0], program)
    for library in _shared_libraries(binaries):
        copy_to(library.resolve(), shared / library.name)
    for binary in (*libraries.rglob("*.so"), program, *shared.iterdir()):
        subprocess.run([need("strip"), "--strip-unneeded", binary], check=True, capture_output=True)
    subprocess.run(
        [sys.executable, "-m", "compileall", "-q", "--invalidation-mode", "unchecked-hash", libraries], check=True
    )


def put_program(source: Path, program: Path, *, shared: Path) -> None:
    """Put a program at `program`, as it is, and its shared libraries into the directory `shared`."""
    copy_to(source, program)
    for library in _shared_libraries([source]):
        copy_to(library.resolve(), shared / library.name)


def pack_initramfs(ram: Path, modules: Iterable[Path], init: str) -> bytes:
    """Return the archive of a tree that the kernel unpacks at its start, with `modules` listed and `init` to run."""
    for folder in ("bin", "dev", "proc", "sys", "modules"):
        (ram / folder).mkdir(parents=True, exist_ok=True)
    for module in modules:
        shutil.copy(module, ram / "modules")
    (ram / "modules.list").write_text(" ".join(module.name for module in modules))
    (ram / "init").write_text(init)
    (ram / "init").chmod(0o755)
    names = "\n".join(str(path.relative_to(ram)) for path in sorted(ram.rglob("*")))
    packed = subprocess.run(
        [need("cpio"), "-o", "-H", "newc", "--quiet"], cwd=ram, input=names.encode(), check=True, capture_output=True
    )
    return packed.stdout


def copy_to(source: Path, target: Path) -> None:
    """Copy a file with its mode, and make the directories it lies in."""
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(source, target)


def _shared_libraries(binaries: Iterable[Path]) -> set[Path]:
    found: set[Path] = set()
    for binary in binaries:
        listed = subprocess.run(["ldd", binary], check=False, capture_output=True, text=True).stdout
        found |= {Path(path) for path in re.findall(r"(/\S+) \(0x", listed)}
    return found
