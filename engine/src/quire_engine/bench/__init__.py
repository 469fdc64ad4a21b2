"""`quire bench`: what a server or the engine does under a load that can be repeated.

Pure: workload (what is asked), arrivals (when), reading (an answer's events), statistics, report, plot. They know no
socket and no clock. client holds the connections, load sends, serving and offline are the commands, cli the table of
them. None imports torch before a model is to be loaded in this process.
"""

__all__: list[str] = []
