"""Generates everything that is derived from the contract, and proves that what is committed is fresh.

write    update the Python code and Envoy's descriptor set (only files that changed)
check    exit 1 and name the files when what is committed is not what would be generated
plugin   protoc plugin, called by `buf generate` (see buf.gen.yaml)
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SOURCE = Path("maestro_sdk/src")
PACKAGES = ("maestro", "buf")
DESCRIPTORS = Path("envoy/maestro.binpb")
# What mypy-protobuf says a streaming method of a servicer returns.
STREAM = re.compile(rb"_typing\.Union\[(_abc\.Iterator\[[\w.]+\], _abc\.AsyncIterator\[[\w.]+\])\]")


def respond(request_bytes: bytes) -> bytes:
    """Answer one protoc plugin request (serialized CodeGeneratorRequest in, CodeGeneratorResponse out).

    grpcio-tools carries protoc and the gRPC generator as one library but no stand-alone plugin, hence this one.
    """
    from google.protobuf.compiler import plugin_pb2
    from google.protobuf.descriptor_pb2 import FileDescriptorSet
    from grpc_tools import protoc

    request = plugin_pb2.CodeGeneratorRequest.FromString(request_bytes)
    response = plugin_pb2.CodeGeneratorResponse(
        supported_features=plugin_pb2.CodeGeneratorResponse.FEATURE_PROTO3_OPTIONAL
    )
    with_services = [file.name for file in request.proto_file if file.service and file.name in request.file_to_generate]
    with tempfile.TemporaryDirectory() as folder:
        descriptors, out = Path(folder, "descriptors"), Path(folder, "out")
        descriptors.write_bytes(FileDescriptorSet(file=request.proto_file).SerializeToString())
        out.mkdir()
        # A file without a service gets no *_pb2_grpc.py: it would be an empty module.
        for option, names in (("--python_out", request.file_to_generate), ("--grpc_python_out", with_services)):
            if names and protoc.main(["protoc", f"--descriptor_set_in={descriptors}", f"{option}={out}", *names]):
                response.error = f"protoc {option} failed; its message is above"
        for file in sorted(path for path in out.rglob("*") if path.is_file()):
            response.file.add(name=file.relative_to(out).as_posix(), content=file.read_text(encoding="utf-8"))
    return response.SerializeToString()


def generate(out: Path) -> dict[Path, bytes]:
    """Generate into the folder `out`; return each file's content by its path below the repository root."""
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"}
    python, descriptors = out / "python", out / "descriptors.binpb"
    for command in (
        ["buf", "generate", "--output", str(python)],
        # The whole workspace, so google/rpc/error_details.proto is in: without it Envoy turns an error with details
        # into an empty body. Source info would only make the file larger.
        ["buf", "build", "--as-file-descriptor-set", "--exclude-source-info", "--output", str(descriptors)],
    ):
        subprocess.run(command, cwd=ROOT, env=environment, check=True)
    files = {SOURCE / file.relative_to(python): file.read_bytes() for file in python.rglob("*.py*")}
    for file in [file for file in files if file.name.endswith("_pb2_grpc.pyi")]:
        if file.with_suffix(".py") in files:
            # grpc.aio also lets a streaming method be a coroutine that writes its answers to the context.
            files[file] = STREAM.sub(rb"_typing.Union[\1, _abc.Awaitable[None]]", files[file])
        else:
            del files[file]  # the types of a module that is not there
    files[SOURCE / "maestro" / "py.typed"] = b""
    files[DESCRIPTORS] = descriptors.read_bytes()
    return files


def committed() -> dict[Path, bytes]:
    """Return the generated files that the working tree holds."""
    paths = [path for package in PACKAGES for path in (ROOT / SOURCE / package).rglob("*") if path.is_file()]
    paths = [path for path in paths if "__pycache__" not in path.parts]
    if (ROOT / DESCRIPTORS).exists():
        paths.append(ROOT / DESCRIPTORS)
    return {path.relative_to(ROOT): path.read_bytes() for path in paths}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=["write", "check", "plugin"])
    action = parser.parse_args().action
    if action == "plugin":
        sys.stdout.buffer.write(respond(sys.stdin.buffer.read()))
        return 0
    with tempfile.TemporaryDirectory() as folder:
        try:
            fresh = generate(Path(folder))
        except subprocess.CalledProcessError as error:
            sys.stderr.write(f"generation failed: {' '.join(error.cmd[:2])} exited with {error.returncode}\n")
            return 1
    present = committed()
    changes = sorted(path for path in fresh.keys() | present.keys() if fresh.get(path) != present.get(path))
    if action == "check":
        for path in changes:
            kind = "missing" if path not in present else "stale" if path in fresh else "left over"
            sys.stderr.write(f"{kind}: {path}\n")
        if changes:
            sys.stderr.write("generated code does not match proto/: run `make proto` and commit the result\n")
        return 1 if changes else 0
    for path in changes:
        target = ROOT / path
        if path in fresh:
            target.parent.mkdir(parents=True, exist_ok=True)
            # Written beside and renamed: a service that starts meanwhile never imports half a module.
            beside = target.with_name(f".{target.name}.new")
            beside.write_bytes(fresh[path])
            beside.replace(target)
        else:
            target.unlink()
    sys.stdout.write(f"{len(changes)} of {len(fresh)} generated files changed\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
