"""The processes of a launch by hand meet before JAX starts, which would wait or abort.

Process 0 listens where JAX will. Every other one says which it is of how many, and hears whether
all are there, or what is wrong.
"""

import contextlib
import socket
import time

HELLO = "diffopt"  # begins each line, so that a stranger at the port is known for one


def check_launch(address: str, count: int, index: int, patience: float) -> str:
    """What is wrong with the launch, if anything is, after at most `patience` seconds."""
    host, port = address.rsplit(":", 1)
    deadline = time.monotonic() + patience
    late = f"not all processes came within {patience:g} s"
    if index == 0:
        with contextlib.suppress(OSError), listen(int(port)) as server:
            return receive_all(server, count, deadline, late)
    # where the port is taken, by another process 0 perhaps, this one asks as the others do
    return ask_first((host.strip("[]"), int(port)), count, index, deadline, late)


def listen(port: int) -> socket.socket:
    """A server at all addresses of this machine."""
    if socket.has_dualstack_ipv6():
        return socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True)
    return socket.create_server(("", port))


def receive_all(server: socket.socket, count: int, deadline: float, late: str) -> str:
    """As process 0, wait for the others and tell them all what is wrong; `late` at the deadline."""
    fault, seen = "", {0}
    with contextlib.ExitStack() as guests:
        talks = []
        while len(seen) < count and not fault:
            server.settimeout(max(deadline - time.monotonic(), 0.01))
            try:
                talk = guests.enter_context(server.accept()[0])
                talk.settimeout(2)
                hello, index, their_count = talk.makefile(encoding="ascii").readline().split()
            except TimeoutError:
                if time.monotonic() >= deadline:
                    fault = late
                continue
            except (OSError, ValueError):
                continue
            if hello != HELLO:
                continue
            talks.append(talk)
            if int(their_count) != count:
                fault = f"process {index} is told of {their_count} processes, process 0 of {count}"
            elif int(index) in seen:
                fault = f"two processes have the index {index}"
            seen.add(int(index))
        for talk in talks:
            with contextlib.suppress(OSError):
                talk.sendall(f"{HELLO} {fault}\n".encode())
    return fault


def ask_first(address: tuple[str, int], count: int, index: int, deadline: float, late: str) -> str:
    """Tell process 0 that this one is there; what is wrong with the launch, if anything is."""
    while (left := deadline - time.monotonic()) > 0:
        try:
            talk = socket.create_connection(address, timeout=left)
        except OSError:
            time.sleep(min(left, 0.2))
            continue
        with talk, contextlib.suppress(OSError):
            talk.sendall(f"{HELLO} {index} {count}\n".encode())
            talk.settimeout(left + 2)  # process 0 is the first to give up
            answer = talk.makefile(encoding="ascii", errors="replace").readline()
            if answer.startswith(f"{HELLO} "):
                return answer.removeprefix(f"{HELLO} ").strip()
        return (
            f"what answers at {address[0]}:{address[1]} does not wait for a process {index}: the"
            " port is taken, or two processes have this index"
        )
    return late
