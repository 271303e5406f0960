"""Compiles the kernels for each architecture with the settings of the run-time compiler and checks the result.

Prints registers and spills of every kernel; fails on errors and spills, with `--fallback` also if the committed
fallback differs from the compiler's (`--write` replaces it).
"""

import ctypes
import pathlib
import re
import subprocess
import sys
import sysconfig
import tempfile

KERNELS = pathlib.Path("kernels/src/cuda/src")
FALLBACK = pathlib.Path("kernels/src/cuda/fallback.sm_80.ptx")
ARCHITECTURES = ["sm_80", "sm_90"]
# The options of the run-time compilation: no contraction, so that results are the CPU's.
OPTIONS = ["--fmad=false", "--std=c++17"]
PACKAGES = pathlib.Path(sysconfig.get_paths()["purelib"]) / "nvidia"


def source():
    names = (KERNELS / "sources.txt").read_text().split()
    return "".join((KERNELS / name).read_text() for name in names)


def compile_ptx(nvrtc, text, architecture):
    program = ctypes.c_void_p()
    assert nvrtc.nvrtcCreateProgram(ctypes.byref(program), text.encode(), b"kernels.cu", 0, None, None) == 0
    options = [f"--gpu-architecture={architecture.replace('sm', 'compute')}", *OPTIONS]
    array = (ctypes.c_char_p * len(options))(*[option.encode() for option in options])
    failed = nvrtc.nvrtcCompileProgram(program, len(options), array)
    log = read(nvrtc.nvrtcGetProgramLogSize, nvrtc.nvrtcGetProgramLog, program)
    if log.strip():
        print(log)
    if failed:
        sys.exit(f"{architecture}: the kernels do not compile")
    return read(nvrtc.nvrtcGetPTXSize, nvrtc.nvrtcGetPTX, program)


def read(size_of, copy, program):
    size = ctypes.c_size_t()
    assert size_of(program, ctypes.byref(size)) == 0
    buffer = ctypes.create_string_buffer(size.value)
    assert copy(program, buffer) == 0
    return buffer.value.decode()


def assemble(ptx, architecture):
    """Prints a line per kernel; returns the kernels that spill."""
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "kernels.ptx"
        path.write_text(ptx)
        command = [PACKAGES / "cuda_nvcc/bin/ptxas", "-v", f"-arch={architecture}", path, "-o", path.with_suffix(".o")]
        run = subprocess.run(command, capture_output=True, text=True, check=False)
    if run.returncode != 0:
        sys.exit(f"{architecture}: {run.stderr}")
    spilling = []
    kernel, spills = "", 0
    for line in run.stderr.splitlines():
        if found := re.search(r"Compiling entry function '(\w+)'", line):
            kernel = found[1]
        elif found := re.search(r"(\d+) bytes spill stores, (\d+) bytes spill loads", line):
            spills = int(found[1]) + int(found[2])
        elif found := re.search(r"Used (\d+) registers", line):
            shared = re.search(r"(\d+) bytes smem", line)
            print(f"{architecture} {kernel}: {found[1]} registers, {spills} bytes spilled, "
                  f"{shared[1] if shared else 0} bytes static shared")
            if spills:
                spilling.append(kernel)
    return spilling


def main():
    nvrtc = ctypes.CDLL(str(PACKAGES / "cuda_nvrtc/lib/libnvrtc.so.12"))
    text = source()
    spilling = []
    for architecture in ARCHITECTURES:
        ptx = compile_ptx(nvrtc, text, architecture)
        spilling += assemble(ptx, architecture)
        if architecture != "sm_80":
            continue
        if "--write" in sys.argv:
            FALLBACK.write_text(ptx)
        elif "--fallback" in sys.argv and (not FALLBACK.exists() or FALLBACK.read_text() != ptx):
            sys.exit(f"{FALLBACK} is stale: run .ci/kernels --write")
    if spilling:
        sys.exit(f"kernels spill registers: {', '.join(sorted(set(spilling)))}")


main()
