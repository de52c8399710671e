# Whether this machine can compile CUDA kernels and has a GPU to run them on. They compile for minutes,
# which nobody without a GPU should wait for; -DTACTIC_CUDA=ON builds them anywhere.
include_guard()
include(CheckLanguage)

function(tactic_has_cuda result)
  set(${result} OFF PARENT_SCOPE)
  check_language(CUDA)
  if(NOT CMAKE_CUDA_COMPILER)
    return()
  endif()
  execute_process(COMMAND nvidia-smi --list-gpus OUTPUT_VARIABLE gpus ERROR_QUIET
                  RESULT_VARIABLE status)
  if(status EQUAL 0 AND gpus MATCHES "GPU 0")
    set(${result} ON PARENT_SCOPE)
  endif()
endfunction()
