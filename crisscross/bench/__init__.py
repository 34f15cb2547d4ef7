"""The operation beside its peers: timing behind a correctness gate, a process for every library.

Nothing here prints, draws or imports a framework. The peers' code is in files of the form that
`crisscross.bench.peer` describes; `crisscross.bench.run` measures them.
"""
