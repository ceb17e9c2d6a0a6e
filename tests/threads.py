"""The same work in several threads at once."""

import sys
import threading


def together(work, count, interval=None):
    """Run `work` in `count` threads, which change every `interval` seconds if that is given.

    Raises what one of them raised.
    """
    raised = []

    def watched():
        try:
            work()
        except BaseException as error:
            raised.append(error)

    before = sys.getswitchinterval()
    sys.setswitchinterval(before if interval is None else interval)
    try:
        threads = [threading.Thread(target=watched) for _ in range(count)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(before)
    if raised:
        raise raised[0]
