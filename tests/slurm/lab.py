"""A real Slurm cluster of three nodes with eight fake GPUs each, on this machine, in a folder.

Needs Debian's slurm-wlm and munge (for accounting slurmdbd and mariadb-server, for pyxis gcc and
libslurm-dev), and root.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.ports import free_ports

NODES = ("n1", "n2", "n3")
GPUS_A_NODE = 8

_SLURM_CONF = """\
ClusterName=lab
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
# Requeued jobs start again once their credentials have expired; the default takes two minutes.
AuthInfo=socket={lab}/run/munge.sock,cred_expire=5
CryptoType=crypto/munge
SlurmctldPort={controller_port}
SlurmctldPidFile={lab}/run/slurmctld.pid
SlurmctldLogFile={lab}/log/slurmctld.log
SlurmdPidFile={lab}/run/slurmd.%n.pid
SlurmdLogFile={lab}/log/slurmd.%n.log
SlurmdSpoolDir={lab}/spool/%n
StateSaveLocation={lab}/state
SlurmdParameters=config_overrides
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
SwitchType=switch/none
# A node that a test takes down stays down.
ReturnToService=0
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_interval=1,sched_min_interval=10000,bf_interval=1
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
DefMemPerCPU=1000
GresTypes=gpu
KillWait=5
MinJobAge=300
MaxArraySize={max_array_size}
MaxJobCount=20000
InactiveLimit=0
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
PlugStackConfig={lab}/etc/plugstack.conf
{accounting}
{nodes}
PartitionName=gpu Nodes=n[1-3] Default=YES MaxTime=2-00:00:00 PriorityTier=1 State=UP
PartitionName=cpu Nodes=n[1-3] MaxTime=04:00:00 PriorityTier=1 State=UP
PartitionName=urgent Nodes=n[1-3] MaxTime=1-00:00:00 PriorityTier=10 State=UP
"""
_NODE = (
    "NodeName={name} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs=64 Sockets=2 "
    "CoresPerSocket=32 ThreadsPerCore=1 RealMemory=1000000 Gres=gpu:h100:8 State=UNKNOWN"
)
_ACCOUNTING = """\
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePort={port}
AccountingStoragePass={lab}/run/munge.sock
AccountingStorageTRES=gres/gpu
AccountingStoreFlags=job_comment,job_script,job_env"""
_SLURMDBD_CONF = """\
AuthType=auth/munge
AuthInfo=socket={lab}/run/munge.sock
DbdHost=localhost
DbdAddr=127.0.0.1
DbdPort={port}
SlurmUser=root
LogFile={lab}/log/slurmdbd.log
PidFile={lab}/run/slurmdbd.pid
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort={database_port}
StorageUser=slurm
StoragePass=pw
StorageLoc=slurm_acct_db
"""


_SPANK = Path("/usr/include/slurm/spank.h")


def missing_programs(accounting: bool = False, pyxis: bool = False) -> list[str]:
    """What is not installed of what a lab needs."""
    wanted = ["slurmctld", "slurmd", "munged", "sbatch", "srun", "unshare"]
    if accounting:
        wanted += ["slurmdbd", "mariadbd", "mariadb-install-db"]
    if pyxis:
        wanted += ["gcc"]
    path = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
    missing = [name for name in wanted if shutil.which(name, path=path) is None]
    return missing + (["slurm/spank.h"] if pyxis and not _SPANK.is_file() else [])


class Lab:
    """The cluster, from entering the ``with`` block to leaving it.

    Args:
        folder: for all its files; its path must be short, sockets lie in it.
        accounting: with slurmdbd and a database, so that ``sacct`` works.
        max_array_size: as in slurm.conf.
        pyxis: version whose options srun has, such as ``0.20``: a plug-in of the tests takes them,
            and the command runs with the host's folders; see :meth:`container_steps`. None: no
            pyxis.
    """

    def __init__(
        self,
        folder: Path,
        accounting: bool = False,
        max_array_size: int = 1001,
        pyxis: str | None = None,
    ) -> None:
        self.folder, self.accounting, self.max_array_size = folder, accounting, max_array_size
        self.pyxis = pyxis
        self.environment = {
            **os.environ,
            "SLURM_CONF": str(folder / "etc" / "slurm.conf"),
            "PATH": os.environ.get("PATH", "") + ":/usr/sbin:/sbin",
        }

    def __enter__(self) -> Lab:
        for name in ("etc", "run", "log", "state", "munge", "dev", "spool", "containers"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        for name in ("n1", "n2", "n3"):
            (self.folder / "spool" / name).mkdir(exist_ok=True)
        try:
            self._configure()
            self._start_munge()
            if self.accounting:
                self._start_accounting()
            self._run("slurmctld")
            for node in NODES:
                # Each node's jobs have a host name of their own, and find each other by them.
                hosts = self.folder / "etc" / "hosts"
                script = (
                    f"hostname {node} && mount --bind {hosts} /etc/hosts && exec slurmd -N {node}"
                )
                self._run("unshare", "--uts", "--mount", "bash", "-c", script)
            self._wait_for_nodes()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(subprocess.SubprocessError):
            subprocess.run(
                ["scancel", "-u", "root"],
                env=self.environment,
                capture_output=True,
                timeout=5,
                check=False,
            )
        time.sleep(0.3)
        for name in (
            *(f"slurmd.{n}" for n in NODES),
            "slurmctld",
            "slurmdbd",
            "mariadbd",
            "munged",
        ):
            _stop(self.folder / "run" / f"{name}.pid")

    def run(self, *command: str, check: bool = True) -> str:
        """Output of a command on the cluster's login node."""
        done = subprocess.run(
            command, env=self.environment, capture_output=True, text=True, timeout=60, check=False
        )
        if check and done.returncode:
            raise RuntimeError(f"{command}: {done.stderr}")
        return done.stdout

    def clear(self) -> None:
        """Take all jobs out of the queue, and wait until they have ended."""
        self.run("scancel", "--user=root")
        _until(lambda: not self.run("squeue", "--noheader"), 60, "an empty queue")

    @property
    def containers(self) -> Path:
        """Folders of the nodes, each with one for every container there is now."""
        return self.folder / "containers"

    def container_steps(self) -> list[dict[str, Any]]:
        """What pyxis was given: a line a job step and node, with the options in their order."""
        record = self.folder / "containers.jsonl"
        lines = record.read_text().splitlines() if record.exists() else []
        return [json.loads(line) for line in lines]

    @contextlib.contextmanager
    def without_pyxis(self, node: str) -> Iterator[None]:
        """A node whose plugstack.conf names no plug-in."""
        empty = self.folder / "etc" / "empty.conf"
        empty.touch()
        conf = self.folder / "etc" / "plugstack.conf"
        inside = (
            "nsenter",
            "-m",
            "-t",
            (self.folder / "run" / f"slurmd.{node}.pid").read_text().strip(),
        )
        self._run(*inside, "mount", "--bind", str(empty), str(conf))
        try:
            yield
        finally:
            self._run(*inside, "umount", str(conf))

    def _run(self, *command: str) -> None:
        subprocess.run(command, env=self.environment, capture_output=True, timeout=60, check=True)

    def _configure(self) -> None:
        host, lab, etc = socket.gethostname(), self.folder, self.folder / "etc"
        controller, database, accounting, *node_ports = free_ports(3 + len(NODES))
        self._database_port = database
        nodes = [
            _NODE.format(name=name, host=host, port=port)
            for name, port in zip(NODES, node_ports, strict=True)
        ]
        storage = "AccountingStorageType=accounting_storage/none"
        if self.accounting:
            storage = _ACCOUNTING.format(port=accounting, lab=lab)
            dbd = etc / "slurmdbd.conf"
            dbd.write_text(_SLURMDBD_CONF.format(lab=lab, port=accounting, database_port=database))
            dbd.chmod(0o600)
        (etc / "slurm.conf").write_text(
            _SLURM_CONF.format(
                host=host,
                lab=lab,
                controller_port=controller,
                max_array_size=self.max_array_size,
                accounting=storage,
                nodes="\n".join(nodes),
            )
        )
        (etc / "hosts").write_text(f"127.0.0.1 localhost {host} {' '.join(NODES)}\n")
        (etc / "plugstack.conf").write_text(self._plugins())
        (etc / "cgroup.conf").write_text("ConstrainDevices=no\n")
        devices = self._devices()
        (etc / "gres.conf").write_text(f"NodeName=n[1-3] Name=gpu Type=h100 File={devices}\n")

    def _plugins(self) -> str:
        """Line of plugstack.conf for the stand-in of pyxis, which is compiled here."""
        if self.pyxis is None:
            return ""
        built = self.folder / "etc" / "pyxis.so"
        source = Path(__file__).with_name("pyxis.c")
        self._run("gcc", "-std=gnu11", "-shared", "-fPIC", "-o", str(built), str(source))
        minor = self.pyxis.split(".")[1]
        return (
            f"required {built} version={minor} record={self.folder}/containers.jsonl "
            f"containers={self.containers}\n"
        )

    def _devices(self) -> str:
        """Character devices that stand for GPUs: Slurm wants to see some."""
        try:
            for number in range(GPUS_A_NODE):
                path = self.folder / "dev" / f"nvidia{number}"
                os.mknod(path, 0o666 | 0o020000, os.makedev(1, 3))
            return f"{self.folder}/dev/nvidia[0-7]"
        except PermissionError:
            return "/dev/tty[0-7]"

    def _start_munge(self) -> None:
        key = self.folder / "munge" / "munge.key"
        key.write_bytes(secrets.token_bytes(128))
        key.chmod(0o600)
        key.parent.chmod(0o700)
        (self.folder / "run").chmod(0o755)
        self._run(
            "munged",
            f"--socket={self.folder}/run/munge.sock",
            f"--key-file={key}",
            f"--pid-file={self.folder}/run/munged.pid",
            f"--log-file={self.folder}/log/munged.log",
            f"--seed-file={key.parent}/munge.seed",
            "--force",
        )

    def _start_accounting(self) -> None:
        data, run = self.folder / "mysql", self.folder / "run"
        admin = ["mariadb", "--no-defaults", "-uroot", "-S", f"{run}/mysql.sock"]
        self._run(
            "mariadb-install-db",
            "--no-defaults",
            "--user=root",
            f"--datadir={data}",
            "--auth-root-authentication-method=normal",
        )
        subprocess.Popen(
            [
                "mariadbd",
                "--no-defaults",
                "--user=root",
                f"--datadir={data}",
                f"--socket={run}/mysql.sock",
                f"--pid-file={run}/mariadbd.pid",
                "--bind-address=127.0.0.1",
                f"--port={self._database_port}",
                "--innodb-buffer-pool-size=128M",
                "--innodb-lock-wait-timeout=900",
                f"--log-error={self.folder}/log/mariadbd.log",
            ],
            env=self.environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        _until(lambda: self._works(*admin, "-e", "select 1"), 60, "the database")
        self._run(
            *admin,
            "-e",
            "create database slurm_acct_db; create user 'slurm'@'localhost' identified by 'pw'; "
            "grant all on slurm_acct_db.* to 'slurm'@'localhost';",
        )
        self._run("slurmdbd")
        _until(lambda: self._works("sacctmgr", "-n", "list", "cluster"), 60, "slurmdbd")
        for entity in (
            ["cluster", "lab"],
            ["account", "lab", "Description=lab", "Organization=lab"],
            ["user", "root", "Account=lab"],
        ):
            self._run("sacctmgr", "-i", "add", *entity)
        self._run("sacctmgr", "-i", "modify", "user", "root", "set", "defaultaccount=lab")

    def _works(self, *command: str) -> bool:
        done = subprocess.run(
            command, env=self.environment, capture_output=True, timeout=30, check=False
        )
        return done.returncode == 0

    def _wait_for_nodes(self) -> None:
        def idle() -> bool:
            names = self.run("sinfo", "-h", "-N", "-t", "idle", "-o", "%N", check=False)
            return len(set(names.split())) == len(NODES)

        _until(idle, 30, "the nodes")


def _until(condition: object, seconds: float, what: str) -> None:
    deadline = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what} did not come up in {seconds} s")
        time.sleep(0.1)


def _stop(pid_file: Path) -> None:
    """Stop a daemon and wait until it is gone."""
    with contextlib.suppress(OSError, ValueError):
        pid = int(pid_file.read_text())
        os.kill(pid, signal.SIGTERM)
        for _ in range(50):
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
            if state == "Z":
                return
            time.sleep(0.1)
        os.kill(pid, signal.SIGKILL)
