"""Starts a program as several processes that run as one, or as one process with several virtual devices."""

import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

HASTE = "--xla_backend_optimization_level=0 --xla_cpu_max_isa=AVX"
"""Flags with which XLA compiles in haste, which is most of the time of a run as small as a test's.

AVX has no fused multiply-add. With it, code compiled so rounds a number otherwise where it computes it again; then the
gradient of a maximum finds no element equal to it, and divides by none (https://github.com/jax-ml/jax/issues/40564).
"""


class Launched:
    """The processes of a run.

    Args:
        command: of the program, with its arguments.
        logs: a folder, for what each process prints.
        processes: how many.
        devices: virtual CPU devices that each of them has and uses.
        program: what Python runs; takes `--set runtime.KEY=VALUE` as `kbaseline` does.
        flags: further ones of XLA.
    """

    def __init__(
        self,
        command: Sequence[str | Path],
        logs: Path,
        processes: int = 1,
        devices: int = 1,
        program: Sequence[str | Path] = ("-m", "kbaseline"),
        flags: str = HASTE,
    ) -> None:
        logs.mkdir(parents=True, exist_ok=True)
        flags = f"--xla_force_host_platform_device_count={devices} {flags}"
        env = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}
        runtime: dict[str, Any] = {"devices": "all"}
        if processes > 1:
            runtime |= {"coordinator": f"127.0.0.1:{_free_port()}", "num_processes": processes}
        self.logs = [logs / f"{number}.txt" for number in range(processes)]
        self.folders = [logs / f"cwd{number}" for number in range(processes)]
        self.processes = []
        for number, (log, folder) in enumerate(zip(self.logs, self.folders, strict=True)):
            folder.mkdir()
            places = {**runtime, "process_id": number} if processes > 1 else runtime
            changes = [word for key, value in places.items() for word in ("--set", f"runtime.{key}={value}")]
            with log.open("w") as file:
                arguments = [sys.executable, "-u", *program, *command, *changes]
                self.processes.append(
                    subprocess.Popen(arguments, stdout=file, stderr=subprocess.STDOUT, env=env, cwd=folder)
                )

    def codes(self, timeout: float = 900) -> list[int]:
        """Exit codes, once all have ended."""
        try:
            return [process.wait(timeout) for process in self.processes]
        finally:
            for process in self.processes:
                process.kill()
                process.wait()

    def text(self, number: int = 0) -> str:
        """What a process has printed; Gloo, which JAX' CPU devices talk through, greets from C++."""
        lines = self.logs[number].read_text().splitlines()
        return "\n".join(line for line in lines if not line.startswith("[Gloo]"))


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
