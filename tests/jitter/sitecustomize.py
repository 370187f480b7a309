"""Random delays in every process that finds this in its PYTHONPATH: where threads begin, where calls in them begin and
end, where they hand something to an event loop, and between two turns of that. They are as long as a busy machine makes
them now and then; here they come so often that what depends on luck shows itself within one run (`make jitter`).

The delays are not the same in the next run: threads have no seed. What is found is then to be held fast by a test that
makes it happen.
"""

import asyncio.base_events
import concurrent.futures.thread
import random
import threading
import time

_CHANCE = random.SystemRandom()
_SLEEP = time.sleep


def _delay(probability, longest_seconds):
    if _CHANCE.random() < probability:
        _SLEEP(_CHANCE.random() ** 2 * longest_seconds)


def _delay_calls_in_pools(pool):
    submit = pool.submit

    def delayed(self, call, /, *args, **kwargs):
        def late(*args, **kwargs):
            _delay(0.2, 0.15)
            try:
                return call(*args, **kwargs)
            finally:
                _delay(0.1, 0.1)

        return submit(self, late, *args, **kwargs)

    pool.submit = delayed


def _delay_threads(thread):
    run = thread.run

    def delayed(self):
        _delay(0.2, 0.1)
        run(self)

    thread.run = delayed


def _delay_event_loops(loop):
    hand_over, turn = loop.call_soon_threadsafe, loop._run_once

    def handed_over(self, callback, *args, context=None):
        if threading.get_ident() != self._thread_id:
            _delay(0.03, 0.05)
        return hand_over(self, callback, *args, context=context)

    def turned(self):
        _delay(0.002, 0.4)
        turn(self)

    loop.call_soon_threadsafe, loop._run_once = handed_over, turned


_delay_calls_in_pools(concurrent.futures.thread.ThreadPoolExecutor)
_delay_threads(threading.Thread)
_delay_event_loops(asyncio.base_events.BaseEventLoop)
