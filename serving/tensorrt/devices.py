"""The facts that fit.py judges: the driver and the GPU of this machine."""

from serving.tensorrt.cuda import CudaError, call, runtime_api
from serving.tensorrt.fit import Device, Driver


def find_driver() -> Driver:
    """Ask CUDA for its versions and its devices. Raises UserError without cuda-bindings."""
    version, runtime_version = call("cudaDriverGetVersion"), call("cudaRuntimeGetVersion")
    try:
        return Driver(version, runtime_version, call("cudaGetDeviceCount"))
    except CudaError as error:
        return Driver(version, runtime_version, 0, error.name)


def find_device() -> Device:
    """Describe CUDA's device 0. Raises CudaError if it doesn't answer."""
    attributes = runtime_api().cudaDeviceAttr
    major = call("cudaDeviceGetAttribute", attributes.cudaDevAttrComputeCapabilityMajor, 0)
    minor = call("cudaDeviceGetAttribute", attributes.cudaDevAttrComputeCapabilityMinor, 0)
    name = call("cudaGetDeviceProperties", 0).name.decode()
    # Memory is asked for last: this opens CUDA's context, which takes some of it.
    free, total = call("cudaMemGetInfo")
    return Device(name, f"{major}.{minor}", free, total)
