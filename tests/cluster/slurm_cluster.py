"""A real Slurm on one machine, for the tests of this folder: munged, MariaDB, slurmdbd, slurmctld and several slurmd.

Needs root on Debian and the packages in PACKAGES. Everything it writes is below one folder, but for
`/etc/slurm/slurm.conf` (Snakemake's executor removes SLURM_CONF inside jobs) and the nodes' names in `/etc/hosts`
(ranks meet at the name of their first node); `stop` takes both away again. The daemons stay in the foreground as
children of this process and die with it, so a killed test run leaves none behind.

GPUs are device nodes that behave like /dev/null: Slurm counts and hands them out as it does real ones.

By hand: `python tests/cluster/slurm_cluster.py FOLDER` serves until interrupted.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

PACKAGES = (
    "slurmctld", "slurmd", "slurm-client", "slurmdbd", "munge", "mariadb-server", "libslurm-dev", "squashfs-tools",
)  # fmt: skip
CONFIG = Path("/etc/slurm/slurm.conf")
HOSTS = Path("/etc/hosts")
MARK = "# octavo test cluster"
ACCOUNT = "lab"


def missing_packages() -> list[str]:
    """Those of PACKAGES that are not installed."""
    return [name for name in PACKAGES if not _installed(name)]


def install_packages() -> None:
    """Install what is missing with apt, without letting the packages start their daemons."""
    if not (missing := missing_packages()):
        return
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive", "RUNLEVEL": "1"}
    apt = ["apt-get", "-o", "DPkg::Lock::Timeout=300", "-qq"]
    subprocess.run([*apt, "update"], env=environment, check=False, capture_output=True)
    subprocess.run(
        [*apt, "install", "-y", "--no-install-recommends", *missing], env=environment, check=True, capture_output=True
    )


def obstacle() -> str | None:
    """Why no cluster can be brought up here; None where it can."""
    if os.geteuid() != 0:
        return "needs root"
    if shutil.which("apt-get") is None or not Path("/etc/debian_version").exists():
        return "needs Debian"
    if CONFIG.exists():
        return f"this machine has a Slurm of its own ({CONFIG})"
    return None


class SlurmCluster:
    """`nodes` nodes of `gpus` GPUs; partition `gpu`, and `spot`, whose jobs are requeued when `gpu` needs devices."""

    def __init__(self, folder: Path, *, nodes: int = 3, gpus: int = 2, gpu_type: str = "h100") -> None:
        self.folder, self.gpus, self.gpu_type = folder, gpus, gpu_type
        self.nodes = [f"node{number}" for number in range(1, nodes + 1)]
        self._daemons: dict[str, subprocess.Popen[bytes]] = {}
        self._ports = _free_ports(3 + nodes)

    def start(self) -> None:
        """Bring it up; returns when every node is idle."""
        for name in ("log", "spool", "state", "mysql", "dev", "munge"):
            (self.folder / name).mkdir(parents=True)
        (self.folder / "munge").chmod(0o755)
        self._write_files()
        try:
            self._start_daemons()
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Take it down: jobs, daemons, files."""
        if self._running("slurmctld"):
            with contextlib.suppress(subprocess.SubprocessError):
                jobs = _run("squeue", "-h", "-o", "%A").split()
                if jobs:
                    _run("scancel", *jobs)
                _wait(lambda: not _run("squeue", "-h"), 60, "jobs to end")
        for name in [*self.nodes, "slurmctld", "slurmdbd", "mariadbd", "munged"]:
            self.stop_daemon(name)
        for process in self.leftovers():
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        _wait(lambda: not self.leftovers(), 60, "the last processes to end")
        if CONFIG.is_symlink() and CONFIG.readlink() == self.folder / "slurm.conf":
            CONFIG.unlink()
        lines = HOSTS.read_text(encoding="utf-8").splitlines(keepends=True)
        HOSTS.write_text("".join(line for line in lines if MARK not in line), encoding="utf-8")
        shutil.rmtree(self.folder, ignore_errors=True)

    def start_daemon(self, name: str) -> None:
        """Start one daemon: slurmctld, or a node's slurmd by the node's name."""
        command = ["slurmd", "-D", "-N", name] if name in self.nodes else [name, "-D"]
        self._start(name, command)

    def stop_daemon(self, name: str, number: int = signal.SIGTERM) -> None:
        """Stop one daemon."""
        daemon = self._daemons.pop(name, None)
        if daemon is None:
            return
        daemon.send_signal(number)
        try:
            daemon.wait(20)
        except subprocess.TimeoutExpired:
            daemon.kill()
            daemon.wait()

    def fail_node(self, name: str) -> None:
        """What a power cut does to a node: its daemon and all that runs on it are gone at once, without a word."""
        self.stop_daemon(name, signal.SIGKILL)
        log = str(self.folder / f"log/slurmd.{name}.log")  # which the managers of its steps hold open
        for process in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                on_node = f"SLURMD_NODENAME={name}\0".encode() in (process / "environ").read_bytes()
                if on_node or any(str(handle.readlink()) == log for handle in (process / "fd").iterdir()):
                    os.kill(int(process.name), signal.SIGKILL)

    def repair(self) -> None:
        """Start the daemons of failed nodes; returns when every node is idle."""
        for node in self.nodes:
            if not self._running(node):
                self.start_daemon(node)
        self.wait_idle()

    def leftovers(self) -> list[int]:
        """Processes that hold a file of this cluster open or were started by one of its jobs.

        A step's manager outlives a killed slurmd; and without cgroups a job's process whose parent has died escapes.
        """
        found = set()
        for process in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if f"SLURM_CONF={self.folder}/".encode() in (process / "environ").read_bytes():
                    found.add(int(process.name))
                if any(str(handle.readlink()).startswith(f"{self.folder}/") for handle in (process / "fd").iterdir()):
                    found.add(int(process.name))
        return sorted(found - {os.getpid()})

    # --- files ------------------------------------------------------------------------------------------------------

    def _write_files(self) -> None:
        for number in range(self.gpus):
            os.mknod(self.folder / f"dev/gpu{number}", 0o666 | stat.S_IFCHR, os.makedev(1, 3))
        key = self.folder / "munge/key"
        key.write_bytes(os.urandom(1024))
        key.chmod(0o400)
        (self.folder / "slurm.conf").write_text(self._slurm_conf(), encoding="utf-8")
        files = f"{self.folder}/dev/gpu" + ("0" if self.gpus == 1 else f"[0-{self.gpus - 1}]")
        gres = [f"NodeName={node} Name=gpu Type={self.gpu_type} File={files}\n" for node in self.nodes]
        (self.folder / "gres.conf").write_text("".join(gres), encoding="utf-8")
        (self.folder / "cgroup.conf").write_text("CgroupAutomount=no\n", encoding="utf-8")
        (self.folder / "plugstack.conf").touch()  # a test may add a plugin
        database = self.folder / "slurmdbd.conf"
        database.write_text(self._slurmdbd_conf(), encoding="utf-8")
        database.chmod(0o600)
        CONFIG.symlink_to(self.folder / "slurm.conf")
        hosts = HOSTS.read_text(encoding="utf-8")
        HOSTS.write_text(f"127.0.0.1 {' '.join(self.nodes)} {MARK}\n{hosts}", encoding="utf-8")

    def _slurm_conf(self) -> str:
        controller, database, _, *slurmds = self._ports
        munge = f"{self.folder}/munge/socket"
        host = socket.gethostname().split(".")[0]
        settings = {
            "ClusterName": "octavo",
            "SlurmctldHost": f"{host}(127.0.0.1)",
            "SlurmUser": "root",
            "SlurmdUser": "root",
            "AuthType": "auth/munge",
            # an expired credential is what a requeued job waits for: seconds instead of two minutes
            "AuthInfo": f"socket={munge},cred_expire=10",
            "SlurmctldPort": controller,
            "SlurmctldPidFile": f"{self.folder}/slurmctld.pid",
            "SlurmctldLogFile": f"{self.folder}/log/slurmctld.log",
            "SlurmdPidFile": f"{self.folder}/slurmd.%n.pid",
            "SlurmdLogFile": f"{self.folder}/log/slurmd.%n.log",
            "SlurmdSpoolDir": f"{self.folder}/spool/%n",
            "SlurmdParameters": "config_overrides",
            "StateSaveLocation": f"{self.folder}/state",
            "ProctrackType": "proctrack/linuxproc",
            "TaskPlugin": "task/none",
            "SwitchType": "switch/none",
            "MpiDefault": "none",
            "SelectType": "select/cons_tres",
            "SelectTypeParameters": "CR_Core_Memory",
            "DefMemPerCPU": 500,
            "SchedulerType": "sched/backfill",
            "SchedulerParameters": "bf_interval=2,sched_interval=2,batch_sched_delay=0",
            "PreemptType": "preempt/partition_prio",
            "PreemptMode": "REQUEUE",
            "JobRequeue": 1,
            "ReturnToService": 2,
            "KillWait": 10,
            "CompleteWait": 0,
            "SlurmdTimeout": 10,
            "GresTypes": "gpu",
            "PlugStackConfig": f"{self.folder}/plugstack.conf",
            "JobAcctGatherType": "jobacct_gather/linux",
            "JobAcctGatherFrequency": 2,
            "AccountingStorageType": "accounting_storage/slurmdbd",
            "AccountingStorageHost": "127.0.0.1",
            "AccountingStoragePort": database,
            "AccountingStoragePass": munge,
            "AccountingStorageTRES": f"gres/gpu,gres/gpu:{self.gpu_type}",
            "AccountingStoreFlags": "job_comment",
        }
        nodes = [
            f"NodeName={node} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs=16 RealMemory=64000 "
            f"Gres=gpu:{self.gpu_type}:{self.gpus} State=UNKNOWN"
            for node, port in zip(self.nodes, slurmds, strict=True)
        ]
        partitions = [
            "PartitionName=gpu Nodes=ALL Default=YES MaxTime=60 DefaultTime=5 PriorityTier=10 PreemptMode=OFF",
            "PartitionName=spot Nodes=ALL MaxTime=60 DefaultTime=5 PriorityTier=1 PreemptMode=REQUEUE",
        ]
        return "\n".join([*(f"{key}={value}" for key, value in settings.items()), *nodes, *partitions]) + "\n"

    def _slurmdbd_conf(self) -> str:
        _, port, sql_port, *_ = self._ports
        settings = {
            "AuthType": "auth/munge",
            "AuthInfo": f"socket={self.folder}/munge/socket",
            "DbdHost": socket.gethostname().split(".")[0],
            "DbdAddr": "127.0.0.1",
            "DbdPort": port,
            "SlurmUser": "root",
            "LogFile": f"{self.folder}/log/slurmdbd.log",
            "PidFile": f"{self.folder}/slurmdbd.pid",
            "StorageType": "accounting_storage/mysql",
            "StorageHost": "127.0.0.1",
            "StoragePort": sql_port,
            "StorageUser": "slurm",
            "StoragePass": "slurm",
            "StorageLoc": "slurm_acct_db",
        }
        return "\n".join(f"{key}={value}" for key, value in settings.items()) + "\n"

    # --- daemons ----------------------------------------------------------------------------------------------------

    def _start_daemons(self) -> None:
        munge, mysql = self.folder / "munge", self.folder / "mysql"
        self._start(
            "munged",
            [
                *("munged", "--foreground", "--force", f"--key-file={munge}/key", f"--socket={munge}/socket"),
                *(f"--pid-file={munge}/pid", f"--log-file={munge}/log", f"--seed-file={munge}/seed"),
            ],
        )
        self._start_database(mysql)
        self._start("slurmdbd", ["slurmdbd", "-D"])
        _wait(lambda: bool(_run("sacctmgr", "-n", "show", "qos")), 120, "slurmdbd")
        for arguments in (
            ["cluster", "octavo"],
            ["account", ACCOUNT, "cluster=octavo"],
            ["user", "root", f"account={ACCOUNT}"],
        ):
            _run("sacctmgr", "-i", "add", *arguments)
        self.start_daemon("slurmctld")
        for node in self.nodes:
            (self.folder / "spool" / node).mkdir()
            self.start_daemon(node)
        self.wait_idle()

    def wait_idle(self) -> None:
        """Wait until every node is idle."""
        count = len(self.nodes)
        _wait(
            lambda: _run("sinfo", "-h", "-N", "-p", "gpu", "-t", "idle", "-o", "%N").count("node") == count,
            120,
            "nodes",
        )

    def _start_database(self, mysql: Path) -> None:
        install = ["mariadb-install-db", "--no-defaults", "--user=root", f"--datadir={mysql}/data"]
        subprocess.run(
            [*install, "--auth-root-authentication-method=socket", "--skip-test-db"], check=True, capture_output=True
        )
        self._start(
            "mariadbd",
            [
                *("mariadbd", "--no-defaults", "--user=root", f"--datadir={mysql}/data", f"--socket={mysql}/socket"),
                *(f"--pid-file={mysql}/pid", "--bind-address=127.0.0.1", f"--port={self._ports[2]}"),
                *("--innodb-buffer-pool-size=64M", "--innodb-lock-wait-timeout=900"),
                "--innodb-flush-log-at-trx-commit=0",
            ],
        )
        client = ["mariadb", "--no-defaults", "-S", f"{mysql}/socket", "-uroot", "-e"]
        users = "; ".join(
            f"create user slurm@'{host}' identified by 'slurm'; grant all on slurm_acct_db.* to slurm@'{host}'"
            for host in ("localhost", "127.0.0.1")
        )
        statements = f"create database if not exists slurm_acct_db; {users}"
        _wait(
            lambda: subprocess.run([*client, "select 1"], check=False, capture_output=True).returncode == 0,
            120,
            "MariaDB",
        )
        subprocess.run([*client, statements], check=True, capture_output=True)

    def _start(self, name: str, command: list[str]) -> None:
        log = (self.folder / "log" / f"{name}.out").open("ab")
        # SIGKILL when this process ends, however it ends
        self._daemons[name] = subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", *command],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            # slurmdbd.conf, gres.conf and cgroup.conf are looked for beside it
            env={**os.environ, "SLURM_CONF": str(self.folder / "slurm.conf")},
        )
        log.close()

    def _running(self, name: str) -> bool:
        return name in self._daemons and self._daemons[name].poll() is None


def _run(*command: str) -> str:
    return subprocess.run(command, check=False, capture_output=True, text=True, timeout=30).stdout.strip()


def _wait(ready: Callable[[], bool], seconds: float, what: str) -> None:
    end = time.monotonic() + seconds
    while not ready():
        if time.monotonic() > end:
            raise TimeoutError(f"waited {seconds} s for {what}")
        time.sleep(0.2)


def _installed(package: str) -> bool:
    shown = subprocess.run(["dpkg-query", "-W", "-f=${Status}", package], check=False, capture_output=True, text=True)
    return "ok installed" in shown.stdout


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


if __name__ == "__main__":
    if reason := obstacle():
        sys.exit(reason)
    install_packages()
    cluster = SlurmCluster(Path(sys.argv[1]).resolve())
    cluster.start()
    print(_run("sinfo", "-N", "-o", "%N %P %t %G"), flush=True)
    with contextlib.suppress(KeyboardInterrupt):
        signal.signal(signal.SIGTERM, lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        signal.pause()
    cluster.stop()
