"""Programs that try to get out of the sandbox, or to look as if they had passed. None of them may reach the end of its own claims.

Each program asserts that it got what it was after, so "passed" means that it escaped. OUTSIDE stands for a folder of the machine
that the test watches, HOME for the user's, PARENT for the process number of the test.
"""

from __future__ import annotations

PRELUDE = """
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
"""

ESCAPES = {
    "connects to a server": """
import socket
socket.create_connection(("1.1.1.1", 53), timeout=1)
""",
    "talks to a service of this machine": """
import socket
listener = socket.socket(); listener.bind(("127.0.0.1", 0))
""",
    "looks up a name": """
import socket
assert socket.getaddrinfo("example.com", 80)
""",
    "uses a local socket": """
import socket
a, b = socket.socketpair()
a.send(b"x"); assert b.recv(1) == b"x"
""",
    "reads the users of the machine": "assert open('/etc/passwd').read()",
    "reads a home folder": """
import os
found = []
for folder, below, files in os.walk('HOME'):
    if os.path.basename(folder) == 'lib': below.clear()  # the way to the interpreter's own library is there
    else: found += files
assert found
""",
    "finds secrets in the environment": "import os; assert any('SECRET' in key for key in os.environ)",
    "finds secrets in the first process": "assert open('/proc/1/environ').read() or open('/proc/1/root/etc/passwd').read()",
    "reads its own maps": "assert open('/proc/self/maps').read()",
    "reads a file outside": "assert open('OUTSIDE/precious').read()",
    "writes a file outside": "open('OUTSIDE/new', 'w').write('x')",
    "deletes the folder outside": "import shutil; shutil.rmtree('OUTSIDE')",
    "writes into the library": "import os; open(os.path.join(os.path.dirname(os.__file__), 'escaped.py'), 'w').write('x')",
    "changes the library's rights": "import os; os.chmod(os.path.dirname(os.__file__), 0o777)",
    "goes out by a link": "import os; os.symlink('OUTSIDE/precious', './link'); assert open('./link').read()",
    "goes out by dots": "assert open('../../../..OUTSIDE/precious').read()",
    "starts a program": "import subprocess; assert subprocess.run(['/bin/ls']).returncode == 0",
    "starts a shell": "import os; assert os.system('true') == 0",
    "forks": "import os\nif os.fork() == 0: os._exit(0)",
    "fork bomb": """
import os
while True:
    try: os.fork()
    except OSError: assert False, "no process to be had"
""",
    "forks behind Python's back": PRELUDE + "assert libc.fork() >= 0",
    "makes a process by the bare call": PRELUDE + "assert libc.syscall(56 if os.uname().machine == 'x86_64' else 220, 17, 0, 0, 0, 0) >= 0",
    "lives on as a daemon": "import os\nif os.fork() == 0:\n    os.setsid()\n    if os.fork() == 0:\n        import time; time.sleep(1000)\n",
    "thread bomb": """
import threading, time
threads = []
while len(threads) < 5000:
    threads.append(threading.Thread(target=time.sleep, args=(1000,), daemon=True)); threads[-1].start()
""",
    "kills the test": "import os; os.kill(PARENT, 9)",
    "kills everything": "import os, signal; os.kill(-1, 9)",
    "kills the first process": "import os, time; os.kill(1, 9); time.sleep(0.1); os.kill(1, 0); assert False, 'it lives'",
    "traces the first process": PRELUDE + "assert libc.ptrace(16, 1, 0, 0) == 0",
    "reads the first process's memory": PRELUDE + "assert libc.process_vm_readv(1, 0, 0, 0, 0, 0) == 0",
    "mounts": PRELUDE + "assert libc.mount(b'none', b'/tmp', b'tmpfs', 0, None) == 0",
    "takes a mount away": PRELUDE + "assert libc.umount2(b'/tmp', 2) == 0",
    "mounts the new way": PRELUDE + "assert libc.syscall(430, b'tmpfs', 0) >= 0",
    "changes its root folder": "import os; os.mkdir('./x'); os.chroot('./x')",
    "makes a namespace of its own": PRELUDE + "assert libc.unshare(0x10000000) == 0",
    "becomes root": "import os; os.setuid(0)",
    "makes a device": "import os, stat; os.mknod('./disk', stat.S_IFBLK | 0o600, os.makedev(254, 0))",
    "uses a descriptor of the parent": """
import os
for descriptor in range(3, 1000):
    try: os.write(descriptor, b"junk")
    except OSError: continue
assert False, "nothing that mattered"
""",
    "asks for more than its limits": "import resource; resource.setrlimit(resource.RLIMIT_AS, (-1, -1))",
    "takes memory no limit counts": "import os; assert os.memfd_create('x') >= 0",
    "takes shared memory": PRELUDE + "assert libc.shmget(0, 1 << 20, 0o1600) >= 0",
    "asks the kernel by a ring": PRELUDE + "assert libc.syscall(425, 8, ctypes.create_string_buffer(120)) >= 0",
    "turns the filter off": PRELUDE + "assert libc.prctl(22, 0, 0, 0, 0) == 0",
    "sets the clock": "import time; time.clock_settime(time.CLOCK_REALTIME, 0)",
    "changes the host's name": "import socket; socket.sethostname('escaped')",
    "leaves a huge file": "open('./huge', 'wb').write(bytes(1 << 25))",
    "fills the disk": "for n in range(100): open(f'./{n}', 'wb').write(bytes(1 << 23))",
    "leaves a million files": "for n in range(1_000_000): open(f'./{n}', 'wb').close()",
    "runs a file of its own": "import os; open('./x', 'w').write('#!/bin/sh'); os.chmod('./x', 0o755); os.execv('./x', ['./x'])",
    "crashes": "import ctypes; ctypes.string_at(0)",
}  # fmt: skip
"""Tries that end by themselves, as failures of one kind or another."""

ENDLESS = {
    "loops": "while True: pass",
    "sleeps": "import time; time.sleep(1000)",
    "ignores signals": "import signal, time\nfor n in (1, 2, 3, 15, 24): signal.signal(n, signal.SIG_IGN)\nwhile True: time.sleep(1)",
    "catches everything": "while True:\n    try:\n        while True: pass\n    except BaseException: pass",
    "prints for ever": "while True: print('x' * 10_000)",
    "waits for the keyboard for ever": "import time\nwhile True:\n    try: input()\n    except EOFError: time.sleep(0.01)",
    "waits for its threads": "import threading, time\nt = threading.Thread(target=time.sleep, args=(1000,)); t.start(); t.join()",
}
"""Programs that must be stopped by the clock."""

GREEDY = {
    "one large block": "x = bytearray(1 << 32)",
    "many small ones": "x = []\nwhile True: x.append(bytearray(1 << 20))",
    "a list of lists": "x = [0]\nwhile True: x = [x] * len(x) + x * 2",
}
"""Programs that must be stopped by the bound on memory."""

PRETENDERS = {
    "leaves with 0": "import os; os._exit(0)",
    "exits with 0": "import sys; sys.exit(0)",
    "quits": "raise SystemExit",
    "leaves when done": "import atexit, os; atexit.register(os._exit, 0); raise ValueError",
    "a thread leaves": "import threading, os\nt = threading.Thread(target=os._exit, args=(0,)); t.start(); t.join()",
    "leaves behind Python's back": "import ctypes; ctypes.CDLL(None)._exit(0)",
    "prints what a judge might read": "print('passed'); print('ok'); import os; os._exit(0)",
    "writes it everywhere": """
import os
for descriptor in range(64):
    try: os.write(descriptor, b"passed")
    except OSError: pass
os._exit(0)
""",
    "patches what a judge might call": """
import builtins, os, sys, json
builtins.exec = builtins.compile = builtins.AssertionError = builtins.Exception = lambda *a, **k: None
os.write = os.read = json.dumps = lambda *a, **k: None
os._exit(0)
""",
    "makes every exit a good one": "import os\nleave = os._exit\nos._exit = lambda code: leave(0)\nassert False",
    "makes an error that cannot be shown": "class E(BaseException):\n    def __str__(self): import os; os._exit(0)\nraise E",
}  # fmt: skip
"""Programs that end well without having come to their last line."""
