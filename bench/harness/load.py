"""One measurement: so many connections ask for so long; what came of it and what it cost."""

import json
import os
import re
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

from .contenders import BENCH, WORK, Server, statements
from .postgres import FIRST_GROUP, FIRST_USER, Postgres

TICKS = os.sysconf("SC_CLK_TCK")


@dataclass
class Figures:
    """Of one measurement. Times in microseconds."""

    rate: float
    p50: float
    p99: float
    # CPU time per request: of the contender, and of Postgres.
    cpu: float
    cpu_postgres: float
    # Most memory that the contender held, in MiB.
    rss: float = 0.0


def cpu_seconds(pids: list[int]) -> float:
    total = 0
    for pid in pids:
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
        except OSError:
            continue
        # Of itself, and of children that ended.
        total += sum(int(field) for field in fields[11:15])
    return total / TICKS


def peak_rss_mib(pid: int) -> float:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+)", status).group(1)) / 1024


def wrk(server: Server, postgres: Postgres, kind: str, connections: int, seconds: float,
        groups: int, members: int, seed: int) -> Figures:
    """Asks a server. Any answer but a good one ends the run: it would be a figure of nothing."""
    threads = 1 if connections < 16 else 2
    command = ["wrk", f"-t{threads}", f"-c{connections}", f"-d{max(1, round(seconds))}s", "--timeout", "10s",
               "-s", str(BENCH / "load.lua"), server.url, "--", kind, str(groups), str(members),
               str(seed)]  # KIND may also be a path
    processes = [server.process.pid]
    # From here on the most is counted anew.
    Path(f"/proc/{server.process.pid}/clear_refs").write_text("5")
    before = cpu_seconds(processes), cpu_seconds(postgres.processes())
    done = subprocess.run(command, capture_output=True, text=True)
    after = cpu_seconds(processes), cpu_seconds(postgres.processes())
    found = re.search(r"^RESULT (.*)$", done.stdout, re.MULTILINE)
    if done.returncode or not found:
        raise SystemExit(f"wrk failed: {done.stdout}{done.stderr}")
    result = json.loads(found.group(1))
    if result["refused"] or result["broken"]:
        raise SystemExit(f"{server.name}, {kind}, {connections} connections: {result['refused']} answers "
                         f"were refusals, {result['broken']} connections broke")
    count = result["requests"]
    return Figures(
        rate=count / (result["duration_us"] / 1e6),
        p50=result["p50_us"],
        p99=result["p99_us"],
        cpu=(after[0] - before[0]) / count * 1e6,
        cpu_postgres=(after[1] - before[1]) / count * 1e6,
        rss=peak_rss_mib(server.process.pid),
    )


# In prepared mode each :name is a parameter of the statement.
PARAMETERS = {
    "callback": ["group", "user", "nickname", "face", "role", "ex"],
    "member": ["group", "user"],
    "page": ["group", "after", "limit"],
}
STATEMENT = {"callback": "PATCH", "member": "MEMBER", "page": "PAGE"}


def pgbench_scripts(kind: str, groups: int, members: int) -> list[Path]:
    """The same statement with the same values. pgbench cannot choose between a text and null
    while it runs, so there is a script for each pattern of nulls, all chosen equally often."""
    optional = ["nickname", "face", "role", "ex"] if kind == "callback" else []
    scripts = []
    for pattern in range(2 ** len(optional)):
        absent = {name for bit, name in enumerate(optional) if pattern >> bit & 1}
        sql = statements()[STATEMENT[kind]]
        for number, name in enumerate(PARAMETERS[kind], 1):
            # pgbench has no empty texts either.
            value = {"after": "''"}.get(name, "NULL" if name in absent else f":{name}")
            sql = sql.replace(f"${number}", value)
        text = (
            f"\\set group {FIRST_GROUP} + random(1, {groups})\n"
            f"\\set user {FIRST_USER} + random(1, {members})\n"
            "\\set nickname random(100000000, 999999999)\n"
            "\\set role case when random(1, 10) = 10 then 60 else 20 end\n"
            f"{sql};\n"
        )
        path = WORK / f"{kind}-{pattern}.sql"
        path.write_text(text)
        scripts.append(path)
    return scripts


def pgbench(postgres: Postgres, kind: str, connections: int, seconds: float, groups: int,
            members: int, seed: int) -> Figures:
    """Asks Postgres itself."""
    scripts = [part for path in pgbench_scripts(kind, groups, members) for part in ("-f", str(path))]
    log = WORK / "pgbench"
    for old in WORK.glob("pgbench.*"):
        old.unlink()
    texts = {
        "face": "https://cdn.example.com/avatars/0123456789abcdef.png",
        "ex": '{"department":"sales","level":3}',
        "limit": "101",
    }
    defines = [part for name, text in texts.items() for part in ("-D", f"{name}={text}")]
    command = [str(postgres.bin / "pgbench"), "-n", "-M", "prepared", "-c", str(connections),
               "-j", str(min(connections, 2)), "-T", str(max(1, round(seconds))),
               "--random-seed", str(seed), *defines, *scripts, "-l", "--log-prefix", str(log),
               postgres.url()]
    processes = len(postgres.processes())
    before = cpu_seconds(postgres.processes())
    # As the service's own connections: a plan made once for all values.
    settings = {"plan_cache_mode": "force_generic_plan", "jit": "off",
                "max_parallel_workers_per_gather": "0"}
    options = " ".join(f"-c {name}={value}" for name, value in settings.items())
    done = subprocess.run(command, capture_output=True, text=True,
                          env={**os.environ, "PGOPTIONS": options})
    # Once the connections are gone, what they used is counted with the server's.
    deadline = time.monotonic() + 5
    while len(postgres.processes()) > processes and time.monotonic() < deadline:
        time.sleep(0.02)
    after = cpu_seconds(postgres.processes())
    found = re.search(r"tps = ([\d.]+) \(without", done.stdout)
    if done.returncode or not found:
        raise SystemExit(f"pgbench failed: {done.stdout}{done.stderr}")
    latencies = sorted(int(line.split()[2]) for path in WORK.glob("pgbench.*")
                       for line in path.read_text().splitlines())
    count = len(latencies)
    return Figures(
        rate=float(found.group(1)),
        p50=latencies[count // 2],
        p99=latencies[count * 99 // 100],
        cpu=0.0,
        cpu_postgres=(after - before) / count * 1e6,
    )
