"""Runs commands of the library in forked children: a kill at any moment costs no new start of Python. See test_interruption.py.

One JSON line a request: the command's words, and seconds until SIGKILL (null: none). One line back: exit code,
seconds taken.
"""

import json
import os
import signal
import sys
import time

import torch

import oasis_lib.cohort.prepare
import oasis_lib.evaluation.generation
import oasis_lib.evaluation.reconstruction
import oasis_lib.sampling
import oasis_lib.training.prior  # noqa: F401
from oasis_lib.__main__ import main
from oasis_lib.training import loop

torch.set_num_threads(1)  # a child has none of its parent's threads
loop.SAVE_EVERY = 0.0
for line in sys.stdin:
    words, patience = json.loads(line)
    begun = time.perf_counter()
    child = os.fork()
    if not child:
        os.setpgid(0, 0)
        os.dup2(2, 1)
        os._exit(main(words))
    if patience is not None:
        time.sleep(patience)
        try:
            os.kill(child, signal.SIGKILL)
        except ProcessLookupError:
            pass
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    print(json.dumps([code, time.perf_counter() - begun]), flush=True)
