# What a function may do to its neighbours, by the name of the bomb: each goes on for a second, or until it is killed.
import os
import time


def handler(event, context):
    end = time.monotonic() + 1
    bombs[event](end)


def memory(end):
    held = []
    while True:
        held.append(b"x" * (1 << 20))


def processes(end):
    while time.monotonic() < end:
        try:
            if os.fork() == 0:
                while True:
                    os.getppid()
        except OSError:
            time.sleep(0.001)
    # The rest of them ends with the instance.
    os._exit(1)


def disk(end):
    piece = b"x" * (1 << 20)
    while time.monotonic() < end:
        try:
            with open("/tmp/bomb", "wb", buffering=0) as file:
                while file.write(piece):
                    pass
        except OSError:
            os.remove("/tmp/bomb")


def files(end):
    while time.monotonic() < end:
        held = []
        try:
            while True:
                held.append(os.open("/dev/null", os.O_RDONLY))
        except OSError:
            for handle in held:
                os.close(handle)


def cpu(end):
    for _ in range(3):
        if os.fork() == 0:
            break
    while time.monotonic() < end:
        pass
    os._exit(1)


bombs = {"memory": memory, "processes": processes, "disk": disk, "files": files, "cpu": cpu}
