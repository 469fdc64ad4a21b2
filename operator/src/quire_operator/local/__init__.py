"""Local mode: engines as processes of this machine, and the commands that speak with them.

Belongs here: the state folder, processes and their logs, devices, what fits, the files that are watched, the control
socket, and `quire get`, `describe`, `logs`, `scale`, `explain`, `chat`, `down`. What a process is told to do is decided
by the planner; `backends/local.py` carries it out with these parts. The commands import neither pydantic nor asyncio
before they need it.
"""

__all__: list[str] = []
