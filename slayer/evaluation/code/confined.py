"""Locks its own process in, then runs one program: started by `sandbox.py` as `python -I -S confined.py REPORT_FD`, request on stdin.

Three processes. The outer one makes new user, mount, pid, network, ipc, host name and cgroup namespaces. Its child is the first
process of the pid namespace: when it ends, by itself or killed, the kernel kills everything in there. It builds a root folder of
read-only mounts with one small writable folder and gives up every right. Its child limits itself, installs a system call filter
and runs the program, without a new process image: no program file is ever executed in there.

Stands alone: standard library only, nothing of this project, since it runs without site-packages.
"""

from __future__ import annotations

import ctypes
import json
import os
import platform
import resource
import signal
import struct
import sys
from collections.abc import Callable
from typing import Any, NoReturn

NOBODY = 65534
WORK_BYTES = 64 << 20
TEMPORARY_FOLDERS = ("/tmp", "/var/tmp", "/usr/tmp")
"""Where Python looks for a folder for temporary files."""
FILE_BYTES = 16 << 20
SETUP_FAILED = 125

# Numbers of the kernel's interface (linux/sched.h, mount.h, prctl.h, seccomp.h, audit.h, capability.h).
NAMESPACES = 0x10000000 | 0x00020000 | 0x20000000 | 0x40000000 | 0x08000000 | 0x04000000 | 0x02000000  # user mount pid net ipc uts cgroup
MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_BIND, MS_REC, MS_PRIVATE = 2, 4, 8, 1 << 12, 1 << 14, 1 << 18
MNT_DETACH, AT_FDCWD, AT_RECURSIVE, READ_ONLY_NO_SUID = 2, -100, 0x8000, 1 | 2
MOUNT_SETATTR = 442
PR_SET_PDEATHSIG, PR_SET_SECCOMP, PR_CAPBSET_DROP, PR_SET_NO_NEW_PRIVS = 1, 22, 24, 38
CAPABILITY_VERSION_3 = 0x20080522
CLONE_THREAD = 0x10000
FIRST_UNIFIED_CALL = 424
EPERM, ENOSYS = 1, 38
ALLOW, KILL_PROCESS, ERRNO = 0x7FFF0000, 0x80000000, 0x00050000

MACHINES = {"x86_64": (0xC000003E, 0), "aarch64": (0xC00000B7, 1)}
"""Architecture in the filter's words, and which number of CALLS is its own."""

CALLS: dict[str, tuple[int | None, int | None]] = {
    "clone": (56, 220), "pivot_root": (155, 41), "capset": (126, 91),
}  # fmt: skip

REFUSED_CALLS: dict[str, tuple[int | None, int | None]] = {
    # other processes and programs
    "fork": (57, None), "vfork": (58, None), "execve": (59, 221), "execveat": (322, 281), "ptrace": (101, 117), "kcmp": (312, 272),
    "process_vm_readv": (310, 270), "process_vm_writev": (311, 271),
    # the network, local sockets included
    "socket": (41, 198), "socketpair": (53, 199),
    # mounts, roots, namespaces, device files
    "mount": (165, 40), "umount2": (166, 39), "pivot_root": (155, 41), "chroot": (161, 51), "unshare": (272, 97), "setns": (308, 268),
    "mknod": (133, None), "mknodat": (259, 33), "name_to_handle_at": (303, 264), "open_by_handle_at": (304, 265), "fanotify_init": (300, 262),
    # memory that no limit of the process counts
    "memfd_create": (319, 279), "shmget": (29, 194), "semget": (64, 190), "msgget": (68, 186), "mq_open": (240, 180), "io_setup": (206, 0),
    # keys, clocks, the machine as a whole
    "add_key": (248, 217), "request_key": (249, 218), "keyctl": (250, 219), "settimeofday": (164, 170), "clock_settime": (227, 112),
    "adjtimex": (159, 171), "clock_adjtime": (305, 266), "sethostname": (170, 161), "setdomainname": (171, 162), "syslog": (103, 116),
    "reboot": (169, 142), "kexec_load": (246, 104), "kexec_file_load": (320, 294), "init_module": (175, 105), "finit_module": (313, 273),
    "delete_module": (176, 106), "swapon": (167, 224), "swapoff": (168, 225), "acct": (163, 89), "quotactl": (179, 60), "vhangup": (153, 58),
    # rarely used doors into the kernel
    "bpf": (321, 280), "perf_event_open": (298, 241), "userfaultfd": (323, 282), "personality": (135, 92), "vmsplice": (278, 75),
    "iopl": (172, None), "ioperm": (173, None), "modify_ldt": (154, None), "lookup_dcookie": (212, 18),
}  # fmt: skip

LIBC = ctypes.CDLL(None, use_errno=True)


class SetupError(Exception):
    """A step of the confinement that this machine refuses."""


def done(result: int, step: str) -> None:
    """SetupError when a C call did not return 0."""
    if result != 0:
        raise SetupError(f"{step}: {os.strerror(ctypes.get_errno())}")


def call_number(calls: tuple[int | None, int | None]) -> int | None:
    """A system call's number on this machine, None where there is no such call."""
    return calls[MACHINES[platform.machine()][1]]


def system_call(name: str, *arguments: Any) -> int:
    """A system call that the C library has no function for."""
    return int(LIBC.syscall(call_number(CALLS[name]), *arguments))


def prctl(option: int, value: int, step: str) -> None:
    """One setting of this process."""
    done(LIBC.prctl(option, ctypes.c_ulong(value), ctypes.c_ulong(0), ctypes.c_ulong(0), ctypes.c_ulong(0)), step)


def enter_namespaces() -> None:
    """New namespaces for this process; its user is mapped by a process that stayed outside, since only that one has the right to."""
    outer = os.getpid()
    read_end, write_end = os.pipe()
    mapper = os.fork()
    if mapper == 0:
        os.close(write_end)
        go = os.read(read_end, 1)
        try:
            if go:
                map_user(outer)
        except OSError:
            os._exit(1)
        os._exit(0)
    os.close(read_end)
    try:
        done(LIBC.unshare(NAMESPACES), "new namespaces (unshare)")
        os.write(write_end, b"g")
    finally:
        os.close(write_end)
        _, status = os.waitpid(mapper, 0)
    if status != 0:
        raise SetupError("user of the new namespace (uid_map): not permitted")


def map_user(pid: int) -> None:
    """Inside, everybody is nobody. Root keeps itself besides, to be able to change to a user whose processes are counted."""

    def write(name: str, content: str) -> None:
        with open(f"/proc/{pid}/{name}", "w", encoding="ascii") as file:
            file.write(content)

    if os.geteuid() == 0:
        try:
            write("uid_map", f"0 0 1\n{NOBODY} {NOBODY} 1\n")
            write("gid_map", f"0 0 1\n{NOBODY} {NOBODY} 1\n")
            return
        except OSError:
            pass  # a root that may not map others: treated like everybody else
    write("setgroups", "deny")
    write("uid_map", f"{NOBODY} {os.geteuid()} 1\n")
    write("gid_map", f"{NOBODY} {os.getegid()} 1\n")


def mount(source: str, target: str, kind: str | None, flags: int, options: str | None = None) -> None:
    """mount(2)."""
    encoded = [None if value is None else value.encode() for value in (source, target, kind, options)]
    done(LIBC.mount(encoded[0], encoded[1], encoded[2], ctypes.c_ulong(flags), encoded[3]), f"mounting {target}")


def build_root(folders: list[str]) -> None:
    """Make this process's root a new folder: `folders` at their own places, read-only; a temporary folder, empty and writable, where the
    process then is; two devices; no /proc.

    What lies behind symbolic links is looked up before the old root goes out of sight. Mount namespace and rights are needed.
    """
    links = {path: os.readlink(path) for path in ("/lib", "/lib64") if os.path.islink(path)}
    wanted = [*folders, "/dev/null", "/dev/urandom", "/etc/ld.so.cache"]
    sources = {path: os.path.realpath(path) for path in wanted if os.path.exists(path) and path not in links}
    mount("none", "/", None, MS_REC | MS_PRIVATE)
    mount("tmpfs", "/tmp", "tmpfs", MS_NOSUID | MS_NODEV, "size=1m,nr_inodes=4096,mode=755")
    os.mkdir("/tmp/old")
    done(system_call("pivot_root", b"/tmp", b"/tmp/old"), "changing the root folder (pivot_root)")
    os.chdir("/")
    for path in sorted(sources, key=len):
        if any(path.startswith(other + "/") for other in sources if other != path):
            continue  # mounted with the folder around it
        place_for(path, is_folder=os.path.isdir("/old" + sources[path]))
        mount("/old" + sources[path], path, None, MS_BIND | MS_REC)
    for path, target in links.items():
        os.symlink(target, path)
    done(LIBC.umount2(b"/old", MNT_DETACH), "letting go of the old root folder")
    os.rmdir("/old")
    # Python itself may be installed below /tmp: the writable folder must not cover it.
    work = next(place for place in TEMPORARY_FOLDERS if not any(path.startswith(place + "/") for path in sources))
    os.makedirs(work, exist_ok=True)
    attributes = struct.pack("QQQQ", READ_ONLY_NO_SUID, 0, 0, 0)
    if LIBC.syscall(MOUNT_SETATTR, AT_FDCWD, b"/", AT_RECURSIVE, attributes, ctypes.c_size_t(len(attributes))) != 0:
        raise SetupError(f"read-only folders (mount_setattr, Linux 5.12 or newer): {os.strerror(ctypes.get_errno())}")
    mount("tmpfs", work, "tmpfs", MS_NOSUID | MS_NODEV | MS_NOEXEC, f"size={WORK_BYTES},nr_inodes=4096,mode=1777")
    os.chdir(work)


def place_for(path: str, is_folder: bool) -> None:
    """An empty folder or file to mount something on."""
    os.makedirs(path if is_folder else os.path.dirname(path), exist_ok=True)
    if not is_folder:
        os.close(os.open(path, os.O_CREAT | os.O_WRONLY, 0o644))


def give_up_rights() -> None:
    """No capability is left, none can come back, and the user is nobody."""
    for capability in range(64):
        if LIBC.prctl(PR_CAPBSET_DROP, ctypes.c_ulong(capability), 0, 0, 0) != 0:
            break  # the first number that the kernel does not know
    if os.getuid() != NOBODY:
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)
    header, none = struct.pack("Ii", CAPABILITY_VERSION_3, 0), struct.pack("6I", *[0] * 6)
    done(system_call("capset", header, none), "giving up capabilities (capset)")
    prctl(PR_SET_NO_NEW_PRIVS, 1, "no new privileges")


def limit(seconds: float, memory_bytes: int) -> None:
    """Limits of this process; it cannot make others, so they hold for everything that runs."""
    cpu_seconds = int(seconds) + 2
    for name, value in {
        "RLIMIT_AS": memory_bytes, "RLIMIT_CPU": cpu_seconds, "RLIMIT_FSIZE": FILE_BYTES, "RLIMIT_NOFILE": 64, "RLIMIT_NPROC": 64,
        "RLIMIT_CORE": 0, "RLIMIT_MSGQUEUE": 0, "RLIMIT_MEMLOCK": 0,
    }.items():  # fmt: skip
        number = getattr(resource, name)
        _, hard = resource.getrlimit(number)
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(number, (value, value))


def call_filter(machine: str) -> bytes:
    """A classic BPF program, 8 bytes an instruction: refused calls fail with EPERM; clone only makes threads.

    Calls from 424 on carry the same numbers everywhere and all came after Linux 5.0: "not there" makes the C library take the
    older way. Calls of another architecture's numbering end the process.
    """
    architecture, column = MACHINES[machine]
    load, equal, at_least, any_bit, leave = 0x20, 0x15, 0x35, 0x45, 0x06

    def instruction(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
        return struct.pack("HBBI", code, if_true, if_false, value)

    refused = [number for numbers in REFUSED_CALLS.values() if (number := numbers[column]) is not None]
    program = [
        instruction(load, 4),  # architecture
        instruction(equal, architecture, if_true=1),
        instruction(leave, KILL_PROCESS),
        instruction(load, 0),  # number of the call
        instruction(at_least, FIRST_UNIFIED_CALL, if_false=1),
        instruction(leave, ERRNO | ENOSYS),
    ]
    for number in refused:
        program += [instruction(equal, number, if_false=1), instruction(leave, ERRNO | EPERM)]
    program += [
        instruction(equal, CALLS["clone"][column] or 0, if_false=3),
        instruction(load, 16),  # its first argument, low half
        instruction(any_bit, CLONE_THREAD, if_true=1),
        instruction(leave, ERRNO | EPERM),
        instruction(leave, ALLOW),
    ]
    return b"".join(program)


def refuse_calls() -> None:
    """From here on this process cannot do what REFUSED_CALLS lists, and nothing can undo it."""
    code = call_filter(platform.machine())
    instructions = ctypes.create_string_buffer(code, len(code))
    program = ctypes.create_string_buffer(struct.pack("HxxxxxxP", len(code) // 8, ctypes.addressof(instructions)))
    done(LIBC.prctl(PR_SET_SECCOMP, ctypes.c_ulong(2), program, ctypes.c_ulong(0), ctypes.c_ulong(0)), "system call filter (seccomp)")


def run_program(program: str, report: int, word: int) -> NoReturn:
    """Run the program and say how it ended. The word that means "passed" is fetched from a pipe only after its last line.

    Nothing short of that counts: an exit, whatever its code, comes before. (Code written to attack this very function could still
    fetch the word itself: it lives in the same process.)
    """
    write, read, leave = os.write, os.read, os._exit
    os.write(report, b"begin\n")
    try:
        exec(compile(program, "program", "exec"), {})
        write(report, b"passed " + read(word, 64))
        leave(0)
    except MemoryError:
        write(report, b"memory")
    except BaseException as error:
        try:
            text = f"{type(error).__name__}: {error}"[:500]
        except BaseException:
            text = "an error that cannot be shown"
        write(report, b"failed " + text.encode(errors="replace"))
    leave(1)


def exit_code(pid: int) -> int:
    """Wait for a child: its exit code, or 128 plus the signal that ended it. Others that end meanwhile are buried."""
    while True:
        ended, status = os.wait()
        if ended == pid:
            return 128 + os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)


def in_child(body: Callable[[], int], *, killed_by_sigterm: bool = False) -> int:
    """Exit code of a forked process that runs `body`. It can be given up by a signal to this one, which then still buries it."""
    pid = os.fork()
    if pid:
        if killed_by_sigterm:
            signal.signal(signal.SIGTERM, lambda *_: os.kill(pid, signal.SIGKILL))
        return exit_code(pid)
    code = SETUP_FAILED
    try:
        code = body()
    finally:
        os._exit(code)


def main() -> int:
    """Outer process: exit code of the program."""
    report = int(sys.argv[1])
    parent = os.getppid()
    prctl(PR_SET_PDEATHSIG, signal.SIGKILL, "dying with the parent")
    request = json.loads(sys.stdin.buffer.read())
    if os.getppid() != parent:
        return SETUP_FAILED
    word, word_end = os.pipe()
    os.write(word_end, request.pop("word").encode())
    os.close(word_end)
    sys.path[:] = [*sys.path[1:], *request["site_packages"]]  # the first is the folder of this file

    def outer() -> int:
        enter_namespaces()
        return in_child(told(first), killed_by_sigterm=True)

    def first() -> int:
        build_root(request["folders"])
        give_up_rights()
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL, "dying with the outer process")  # after the change of user, which forgets it
        return in_child(told(program))

    def program() -> int:
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL, "dying with the first process")
        os.dup2(os.open("/dev/null", os.O_RDONLY), 0)
        for descriptor in range(3, 64):
            if descriptor not in (report, word):
                try:
                    os.close(descriptor)
                except OSError:
                    continue
        limit(request["seconds"], request["memory_bytes"])
        refuse_calls()
        run_program(request["program"], report, word)

    def told(body: Callable[[], int]) -> Callable[[], int]:
        def run() -> int:
            try:
                return body()
            except (SetupError, OSError, ValueError) as error:
                os.write(report, f"problem {error}\n".encode())
                return SETUP_FAILED

        return run

    if platform.machine() not in MACHINES:
        os.write(report, f"problem system call filter: not known for {platform.machine()}\n".encode())
        return SETUP_FAILED
    return told(outer)()


if __name__ == "__main__":
    os._exit(main())
