"""A real Apptainer on Debian 12, which has none, and plain Debian images to build on, for the tests of this folder.

Debian's unstable suite has Apptainer; it wants a newer libc, so it gets one of its own beside it (patchelf), in one
folder, without touching the system. Needs root. Where this root lacks a capability (in most containers and virtual
machines it does), Apptainer is told to keep those there are, and builds run in a user namespace that maps every user to
itself, in which the set is whole.

By hand: `python tests/cluster/apptainer_tool.py FOLDER` prints the PATH entry and the base image.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

PACKAGES = ("patchelf", "squashfs-tools", "mmdebstrap", "ca-certificates", "libseccomp2", "libsqlite3-0")
FROM_UNSTABLE = ("apptainer", "libc6", "libseccomp2", "libsqlite3-0")
IN_BASE = ("ca-certificates", "python3", "python3-dev", "python3-venv", "g++")
"""What container.def would install: here already, so that building on it needs no mirror twice."""
LIBRARIES = "x86_64-linux-gnu"
CAPABILITIES = (  # noqa: SIM905
    "CHOWN DAC_OVERRIDE DAC_READ_SEARCH FOWNER FSETID KILL SETGID SETUID SETPCAP LINUX_IMMUTABLE NET_BIND_SERVICE "
    "NET_BROADCAST NET_ADMIN NET_RAW IPC_LOCK IPC_OWNER SYS_MODULE SYS_RAWIO SYS_CHROOT SYS_PTRACE SYS_PACCT SYS_ADMIN "
    "SYS_BOOT SYS_NICE SYS_RESOURCE SYS_TIME SYS_TTY_CONFIG MKNOD LEASE AUDIT_WRITE AUDIT_CONTROL SETFCAP MAC_OVERRIDE "
    "MAC_ADMIN SYSLOG WAKE_ALARM BLOCK_SUSPEND AUDIT_READ PERFMON BPF CHECKPOINT_RESTORE"
).split()
"""By number, from 0 (linux/capability.h)."""


def obstacle() -> str | None:
    """Why Apptainer cannot be set up here; None where it can."""
    if os.geteuid() != 0:
        return "needs root"
    version = Path("/etc/debian_version")
    if shutil.which("apt-get") is None or not version.exists() or not version.read_text().startswith("12"):
        return "needs Debian 12"
    if os.uname().machine != "x86_64":
        return "needs x86-64"
    return None


def set_up(folder: Path) -> Path:
    """Install Apptainer below `folder`, unless it is there; the folder to put into PATH."""
    programs = folder / "bin"
    if not (programs / "apptainer").exists():
        _install(PACKAGES)
        shutil.rmtree(folder / "root", ignore_errors=True)
        folder.mkdir(parents=True, exist_ok=True)
        _unpack(folder, _download(folder))
        _relocate(folder)
        _permit(folder)
        _wrap(folder)
    return programs


def base_image(folder: Path, apptainer: Path, suite: str) -> Path:
    """A plain Debian with Python as an image, made with mmdebstrap unless it is there."""
    image = folder / f"{suite}.sif"
    if not image.exists():
        with tempfile.TemporaryDirectory(dir=folder) as name:
            tree = Path(name) / "tree"
            tree.mkdir()
            made = subprocess.Popen(
                [
                    *("mmdebstrap", "--mode=root", "--variant=minbase", "--aptopt=Acquire::Languages none"),
                    *("--dpkgopt=path-exclude=/usr/share/doc/*", "--dpkgopt=path-exclude=/usr/share/man/*"),
                    *(f"--include={','.join(IN_BASE)}", suite, "-"),
                ],
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
            )
            # without device nodes: nobody may make them in a user namespace
            subprocess.run(["tar", "-C", tree, "-x", "--exclude=./dev/*"], stdin=made.stdout, check=True)
            if made.wait():
                raise RuntimeError("mmdebstrap failed")
            # the authorities that this machine trusts: its mirrors may be behind one of their own
            shutil.copy("/etc/ssl/certs/ca-certificates.crt", tree / "etc/ssl/certs/ca-certificates.crt")
            partial = folder / f"{suite}.partial.sif"
            build = ["build", "--force", "--mksquashfs-args", "-Xcompression-level 1", str(partial), str(tree)]
            subprocess.run([str(apptainer / "apptainer"), *build], check=True, capture_output=True)
            partial.rename(image)
    return image


def _install(packages: tuple[str, ...]) -> None:
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    apt = ["apt-get", "-o", "DPkg::Lock::Timeout=300", "-qq"]
    subprocess.run([*apt, "update"], env=environment, check=False, capture_output=True)
    install = [*apt, "install", "-y", "--no-install-recommends", *packages]
    subprocess.run(install, env=environment, check=True, capture_output=True)


def _download(folder: Path) -> list[Path]:
    """The packages of the unstable suite, by an apt that knows of nothing else."""
    apt = folder / "apt"
    shutil.rmtree(apt, ignore_errors=True)
    for name in ("lists/partial", "cache/archives/partial", "packages"):
        (apt / name).mkdir(parents=True)
    (apt / "status").touch()
    mirror = re.search(r"^URIs:\s*(\S+)", Path("/etc/apt/sources.list.d/debian.sources").read_text(), re.MULTILINE)
    keyring = "/usr/share/keyrings/debian-archive-keyring.gpg"
    (apt / "sources.list").write_text(f"deb [signed-by={keyring}] {mirror.group(1) if mirror else ''} sid main\n")
    settings = {
        "Dir::State::lists": apt / "lists",
        "Dir::State::status": apt / "status",
        "Dir::Cache": apt / "cache",
        "Dir::Etc::sourcelist": apt / "sources.list",
        "Dir::Etc::sourceparts": "/dev/null",
        "Dir::Etc::preferencesparts": "/dev/null",
        "Acquire::Languages": "none",
        "APT::Sandbox::User": "root",
    }
    (apt / "apt.conf").write_text("".join(f'{key} "{value}";\n' for key, value in settings.items()))
    environment = {**os.environ, "APT_CONFIG": str(apt / "apt.conf")}
    subprocess.run(["apt-get", "-qq", "update"], env=environment, check=True, capture_output=True)
    download = ["apt-get", "-qq", "download", *FROM_UNSTABLE]
    subprocess.run(download, cwd=apt / "packages", env=environment, check=True, capture_output=True)
    return sorted((apt / "packages").glob("*.deb"))


def _unpack(folder: Path, packages: list[Path]) -> None:
    private = folder / "libraries"
    shutil.rmtree(private, ignore_errors=True)
    private.mkdir()
    with tempfile.TemporaryDirectory(dir=folder) as name:
        for package in packages:
            target = folder / "root" if package.name.startswith("apptainer_") else Path(name)
            target.mkdir(exist_ok=True)
            subprocess.run(["dpkg", "-x", package, target], check=True)
        for library in (Path(name) / "usr/lib" / LIBRARIES).glob("*.so*"):
            shutil.copy(library, private)  # follows links
    (private / "ld-linux-x86-64.so.2").chmod(0o755)
    shutil.rmtree(folder / "apt")


def _relocate(folder: Path) -> None:
    """Give the two programs their loader and libraries, and the links by which they find etc/ and var/."""
    root, private = folder / "root", folder / "libraries"
    for program in ("usr/bin/apptainer", f"usr/lib/{LIBRARIES}/apptainer/bin/starter"):
        loader = ["--set-interpreter", private / "ld-linux-x86-64.so.2"]
        subprocess.run(["patchelf", *loader, "--force-rpath", "--set-rpath", private, root / program], check=True)
    for above, up in (("usr", ".."), ("usr/lib", "../..")):
        for name in ("etc", "var"):
            (root / above / name).symlink_to(f"{up}/{name}")
    (root / "var/lib/apptainer/mnt/session").mkdir(parents=True, exist_ok=True)


def _permit(folder: Path) -> None:
    """Let root in a container have the capabilities that root has here."""
    etc = folder / "root/etc/apptainer"
    config = etc / "apptainer.conf"
    text = re.sub(r"(?m)^root default capabilities = .*", "root default capabilities = file", config.read_text())
    config.write_text(text)
    held = _capabilities()
    names = [f"CAP_{name}" for number, name in enumerate(CAPABILITIES) if held >> number & 1]
    (etc / "capability.json").write_text(json.dumps({"users": {"root": names}}))


def _capabilities() -> int:
    found = re.search(r"(?m)^CapPrm:\s+(\w+)", Path("/proc/self/status").read_text())
    return int(found.group(1), 16) if found else 0


def _wrap(folder: Path) -> None:
    """The command `apptainer`: as it is, but for builds by a root that lacks a capability."""
    programs = folder / "bin"
    for name in ("bin", "tmp", "cache"):
        (folder / name).mkdir(exist_ok=True)
    program = folder / "root/usr/bin/apptainer"
    whole = _capabilities() == (1 << len(CAPABILITIES)) - 1
    mapped = f"{sys.executable} {Path(__file__).resolve()} --build"
    build = "" if whole else f'if [ "$1" = build ]; then exec {mapped} "$@"; fi\n'
    script = (
        "#!/bin/sh\n"
        f"export APPTAINER_CACHEDIR={folder}/cache APPTAINER_TMPDIR={folder}/tmp OCTAVO_APPTAINER={program}\n"
        f'{build}exec {program} "$@"\n'
    )
    (programs / "apptainer").write_text(script)
    (programs / "apptainer").chmod(0o755)


def _build(arguments: list[str]) -> None:
    """Run a build in a new user namespace whose users are those outside; only another process may map them."""
    ask, asked = os.pipe()
    tell, told = os.pipe()
    outer = os.getpid()
    if os.fork() == 0:
        os.read(ask, 1)
        for name in ("uid_map", "gid_map"):
            Path(f"/proc/{outer}/{name}").write_text("0 0 65536\n")
        os.write(told, b".")
        os._exit(0)
    import ctypes

    new_user_namespace = 0x10000000
    if ctypes.CDLL(None, use_errno=True).unshare(new_user_namespace):
        raise OSError(ctypes.get_errno(), "no user namespace")
    os.write(asked, b".")
    os.read(tell, 1)
    os.wait()
    program = os.environ["OCTAVO_APPTAINER"]
    os.execv(program, [program, *arguments])


if __name__ == "__main__":
    if sys.argv[1] == "--build":
        _build(sys.argv[2:])
    if reason := obstacle():
        sys.exit(reason)
    where = Path(sys.argv[1]).resolve()
    print(set_up(where), base_image(where, where / "bin", "trixie"))
