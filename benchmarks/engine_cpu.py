"""CPU time of one ``dspy.Predict.acall``, by LM engine, side by side in one run.

DSPy's built-in engine, DSPy's LiteLLM engine and the pooled engine answer the same program from the same upstream:
a keep-alive server in another process that replies at once. Each engine has a process of its own; rounds alternate,
one engine at a time, so that whatever else the machine does falls on all of them. Figures are the CPU time of the
engine's process (``time.process_time``), the median over the rounds; wall time is shown beside it.

    python benchmarks/engine_cpu.py --calls 300 --rounds 7
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import multiprocessing
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "true")

import dspy
import uvloop

from serve_app.adapters.call_scope import call_scope
from serve_app.adapters.dspy_engine import LMPool
from serve_app.config import ModelConfig

LOOPS = {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}
ENGINES = ("built-in", "LiteLLM", "pooled")
TARGET = 1 / 3
PATIENCE_S = 120

REPLY = {
    "id": "chatcmpl-1",
    "object": "chat.completion",
    "created": 1,
    "model": "small",
    "choices": [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "[[ ## answer ## ]]\nParis\n\n[[ ## completed ## ]]"},
            "finish_reason": "stop",
        }
    ],
    "usage": {"prompt_tokens": 120, "completion_tokens": 12, "total_tokens": 132},
}


class Upstream(asyncio.Protocol):
    """Answers every HTTP request on a kept-alive connection with the same completion."""

    body = json.dumps(REPLY).encode()
    reply = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(body) + body

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Wait for requests."""
        self.transport = transport
        self.received = b""

    def data_received(self, data: bytes) -> None:
        """Answer each request that is whole."""
        self.received += data
        while (end := self.received.find(b"\r\n\r\n")) >= 0:
            head = self.received[:end].lower()
            length = int(head.partition(b"content-length:")[2].partition(b"\r\n")[0] or 0)
            if len(self.received) < end + 4 + length:
                return
            self.received = self.received[end + 4 + length :]
            self.transport.write(self.reply)


def serve(pipe: Connection) -> None:
    async def main() -> None:
        server = await asyncio.get_running_loop().create_server(Upstream, "127.0.0.1", 0)
        pipe.send(server.sockets[0].getsockname()[1])
        await server.serve_forever()

    with contextlib.suppress(KeyboardInterrupt):
        uvloop.run(main())


@contextlib.contextmanager
def process(target: Callable[..., None], *args: str) -> Iterator[Connection]:
    """The pipe to ``target(pipe, *args)`` in a process of its own, which ends with the block."""
    spawn = multiprocessing.get_context("spawn")
    here, there = spawn.Pipe()
    child = spawn.Process(target=target, args=(there, *args), daemon=True)
    child.start()
    try:
        yield here
    finally:
        child.terminate()
        child.join()


def answer_of(pipe: Connection) -> Any:
    if not pipe.poll(PATIENCE_S):
        raise RuntimeError(f"a process of the benchmark said nothing for {PATIENCE_S} s")
    return pipe.recv()


def language_model(engine: str, base: str) -> dspy.LM:
    if engine == "pooled":
        return LMPool().lm(ModelConfig(name="small", lm="openai/small", api_base=base))
    choice = "litellm" if engine == "LiteLLM" else "auto"
    return dspy.LM("openai/small", api_base=base, api_key="x", cache=False, num_retries=0, engine=choice)


async def ask(lm: dspy.LM, calls: int) -> tuple[float, float]:
    """CPU and wall milliseconds per call."""
    program = dspy.Predict("question -> answer")
    settings = {"trace": [], "disable_history": True, "max_history_size": 0}
    cpu, wall = time.process_time(), time.perf_counter()
    with dspy.context(lm=lm, adapter=dspy.ChatAdapter(), **settings):
        for _ in range(calls):
            with call_scope(60.0, 256):
                prediction = await program.acall(question="What is the capital of France?")
            if prediction.answer != "Paris":
                raise RuntimeError(f"the answer is {prediction.answer!r}")
    return (time.process_time() - cpu) / calls * 1e3, (time.perf_counter() - wall) / calls * 1e3


def contestant(pipe: Connection, engine: str, loop_name: str, base: str) -> None:
    """Run a round of calls for each number received, over connections that stay open between rounds."""
    loop = LOOPS[loop_name]()
    lm = language_model(engine, base)
    while True:
        pipe.send(loop.run_until_complete(ask(lm, pipe.recv())))


@dataclass
class Figures:
    """What the rounds of one engine on one event loop took, in milliseconds per call."""

    pipe: Connection
    engine: str
    loop_name: str
    cpu_ms: list[float] = field(default_factory=list)
    wall_ms: list[float] = field(default_factory=list)

    def round(self, calls: int) -> tuple[float, float]:
        """CPU and wall milliseconds per call of one round."""
        self.pipe.send(calls)
        return answer_of(self.pipe)


def measure(calls: int, rounds: int) -> list[Figures]:
    with contextlib.ExitStack() as processes:
        port = answer_of(processes.enter_context(process(serve)))
        base = f"http://127.0.0.1:{port}/v1"
        everyone = [
            Figures(processes.enter_context(process(contestant, engine, loop, base)), engine, loop)
            for loop in LOOPS
            for engine in ENGINES
        ]
        for figures in everyone:
            figures.round(max(20, calls // 3))  # imports, connections and caches are warm before anything counts
        for number in range(rounds):
            print(f"round {number + 1} of {rounds}", file=sys.stderr)
            for figures in everyone if number % 2 == 0 else reversed(everyone):
                cpu_ms, wall_ms = figures.round(calls)
                figures.cpu_ms.append(cpu_ms)
                figures.wall_ms.append(wall_ms)
    return everyone


def report(everyone: list[Figures]) -> None:
    cpu = {(f.engine, f.loop_name): statistics.median(f.cpu_ms) for f in everyone}
    print(
        "| engine | event loop | CPU ms per call | min-max | wall ms | of built-in, same loop | of built-in, asyncio |"
    )
    print("|---|---|---|---|---|---|---|")
    for f in everyone:
        own = cpu[f.engine, f.loop_name]
        print(
            f"| {f.engine} | {f.loop_name} | {own:.2f} | {min(f.cpu_ms):.2f}-{max(f.cpu_ms):.2f} "
            f"| {statistics.median(f.wall_ms):.2f} "
            f"| {own / cpu['built-in', f.loop_name]:.2f} | {own / cpu['built-in', 'asyncio']:.2f} |"
        )
    ours = cpu["pooled", "uvloop"]
    print(
        f"\npooled on uvloop, of the built-in engine's CPU: {ours / cpu['built-in', 'asyncio']:.2f} of asyncio's, "
        f"{ours / cpu['built-in', 'uvloop']:.2f} of uvloop's (target: at most {TARGET:.2f})"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calls", type=int, default=300, help="calls per engine and round")
    parser.add_argument("--rounds", type=int, default=7, help="rounds, at least 5 for a fair median")
    options = parser.parse_args()
    report(measure(options.calls, options.rounds))


if __name__ == "__main__":
    main()
