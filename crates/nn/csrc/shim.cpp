// What libtorch offers to C++ and tch 0.24 does not pass on. Called from src/shim.rs only.
//
// A tensor crosses as `at::Tensor*`, which is what tch's C_tensor points to. No exception leaves this file: every
// function returns nullptr, or the error's first line as a string that the caller frees with free().

#include <ATen/ATen.h>
#include <ATen/Context.h>
#include <ATen/Version.h>
#include <ATen/autocast_mode.h>
#include <ATen/detail/CUDAHooksInterface.h>
#include <c10/util/Exception.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/version.h>

#include <cstring>
#include <mutex>
#include <string>
#include <vector>

namespace {

template <typename Body>
char* guarded(Body body) {
    try {
        body();
        return nullptr;
    } catch (const c10::Error& error) {
        return strdup(error.what_without_backtrace());
    } catch (const std::exception& error) {
        return strdup(error.what());
    } catch (...) {
        return strdup("unknown C++ exception");
    }
}

// Keeps what libtorch warns about operators without a deterministic implementation; passes the rest on to stderr.
class NondeterminismRecorder : public c10::WarningHandler {
  public:
    void process(const c10::Warning& warning) override {
        if (warning.msg().find("deterministic") == std::string::npos) {
            c10::WarningHandler::process(warning);
            return;
        }
        std::lock_guard<std::mutex> lock(mutex_);
        std::string operation = warning.msg().substr(0, warning.msg().find(' '));
        if (('\n' + names_).find('\n' + operation + '\n') == std::string::npos) {
            names_ += operation + '\n';
        }
    }

    std::string names() {
        std::lock_guard<std::mutex> lock(mutex_);
        return names_;
    }

  private:
    std::mutex mutex_;
    std::string names_;
};

NondeterminismRecorder& recorder() {
    static auto* instance = new NondeterminismRecorder;  // never destroyed: libtorch may warn while exiting
    return *instance;
}

c10::DeviceType device_type(int cuda) { return cuda ? c10::kCUDA : c10::kCPU; }

}  // namespace

extern "C" {

// What `eq_autocast_enter` found and `eq_autocast_leave` puts back.
struct eq_autocast {
    int enabled;
    int dtype;
};

// `to` and not `contiguous`: the latter leaves strides alone that mean nothing for one channel, although kernels are
// chosen by them.
char* eq_memory_format(const at::Tensor* input, int channels_last, at::Tensor** output) {
    return guarded([&] {
        auto format = channels_last ? c10::MemoryFormat::ChannelsLast : c10::MemoryFormat::Contiguous;
        *output = new at::Tensor(input->to(format));
    });
}

char* eq_is_channels_last(const at::Tensor* input, int* yes) {
    return guarded([&] { *yes = input->suggest_memory_format() == c10::MemoryFormat::ChannelsLast; });
}

// Without a device argument, which tch demands and libtorch deprecates.
char* eq_pin_memory(const at::Tensor* input, at::Tensor** output) {
    return guarded([&] { *output = new at::Tensor(input->pin_memory()); });
}

// A tensor over memory of somebody else's, who is told with `release(owner)` when its last user has gone. `dtype` is a
// c10::ScalarType.
char* eq_share(void* data, const int64_t* sizes, int64_t dims, int dtype, void* owner, void (*release)(void*),
               at::Tensor** output) {
    return guarded([&] {
        auto options = at::TensorOptions().dtype(static_cast<c10::ScalarType>(dtype));
        auto gone = [owner, release](void*) { release(owner); };
        *output = new at::Tensor(at::from_blob(data, at::IntArrayRef(sizes, dims), gone, options));
    });
}

// `dtype` is a c10::ScalarType; `enabled` 0 switches autocasting off within an outer scope.
char* eq_autocast_enter(int cuda, int enabled, int dtype, eq_autocast* previous) {
    return guarded([&] {
        auto device = device_type(cuda);
        previous->enabled = at::autocast::is_autocast_enabled(device);
        previous->dtype = static_cast<int>(at::autocast::get_autocast_dtype(device));
        at::autocast::set_autocast_dtype(device, static_cast<c10::ScalarType>(dtype));
        at::autocast::set_autocast_enabled(device, enabled != 0);
        at::autocast::increment_nesting();
    });
}

char* eq_autocast_leave(int cuda, const eq_autocast* previous) {
    return guarded([&] {
        auto device = device_type(cuda);
        if (at::autocast::decrement_nesting() == 0) {
            at::autocast::clear_cache();
        }
        at::autocast::set_autocast_enabled(device, previous->enabled != 0);
        at::autocast::set_autocast_dtype(device, static_cast<c10::ScalarType>(previous->dtype));
    });
}

char* eq_set_determinism(int deterministic, int tf32) {
    return guarded([&] {
        auto& context = at::globalContext();
        // Warn only: an operator that cannot be deterministic is recorded, and what it wrote marked as such.
        c10::WarningUtils::set_warning_handler(&recorder());
        context.setDeterministicAlgorithms(deterministic != 0, /*warn_only=*/true);
        context.setDeterministicFillUninitializedMemory(false);  // a debugging aid that costs a pass over memory
        context.setDeterministicCuDNN(deterministic != 0);
        context.setDeterministicMkldnn(deterministic != 0);
        context.setBenchmarkCuDNN(deterministic == 0);
        context.setAllowTF32CuBLAS(tf32 != 0);
        context.setAllowTF32CuDNN(tf32 != 0);
    });
}

// Names of the operators that ran without a deterministic implementation, one per line.
char* eq_nondeterministic_operators(char** names) {
    return guarded([&] { *names = strdup(recorder().names().c_str()); });
}

// "key=value" lines: what this process computes with.
char* eq_versions(char** text) {
    return guarded([&] {
        std::string lines = std::string("libtorch=") + TORCH_VERSION;
        lines += "\nmkl=" + at::get_mkl_version();
        lines += "\nonednn=" + at::get_mkldnn_version();
        lines += "\nopenmp=" + at::get_openmp_version();
        if (at::hasCUDA()) {
            const auto& hooks = at::detail::getCUDAHooks();
            lines += "\ncudart=" + std::to_string(hooks.versionCUDART());
            lines += "\ncudnn=" + std::to_string(hooks.versionRuntimeCuDNN());
        }
        *text = strdup(lines.c_str());
    });
}

char* eq_cpu_capability(char** text) {
    return guarded([&] { *text = strdup(at::get_cpu_capability().c_str()); });
}

char* eq_fused_sgd(at::Tensor* parameters, const at::Tensor* gradient, at::Tensor* buffer, double lr, double momentum,
                   double weight_decay, int nesterov, int first_step) {
    return guarded([&] {
        at::NoGradGuard no_grad;
        at::TensorList buffers = momentum == 0.0 ? at::TensorList() : at::TensorList(*buffer);
        at::_fused_sgd_(*parameters, *gradient, buffers, weight_decay, momentum, lr, /*dampening=*/0.0, nesterov != 0,
                        /*maximize=*/false, first_step != 0);
    });
}

// `step` is a one-element float tensor that holds the number of this step, from 1.
char* eq_fused_adamw(at::Tensor* parameters, const at::Tensor* gradient, at::Tensor* exp_avg, at::Tensor* exp_avg_sq,
                     const at::Tensor* step, double lr, double beta1, double beta2, double weight_decay, double eps) {
    return guarded([&] {
        at::NoGradGuard no_grad;
        at::_fused_adamw_(*parameters, *gradient, *exp_avg, *exp_avg_sq, at::TensorList(), *step, lr, beta1, beta2,
                          weight_decay, eps, /*amsgrad=*/false, /*maximize=*/false);
    });
}

// Takes a parameter's gradient the moment that backward has it.
typedef void (*eq_gradient_ready)(void* context, int64_t parameter, const at::Tensor* gradient);

// Gradients of a scalar, which arrive one by one, on whatever thread of autograd computed them; none is kept in `.grad`.
char* eq_backward(const at::Tensor* loss, const at::Tensor* const* parameters, int64_t count, eq_gradient_ready ready,
                  void* context) {
    return guarded([&] {
        struct Hooks {
            std::vector<at::Tensor> tensors;
            std::vector<unsigned> ids;
            ~Hooks() {
                for (size_t i = 0; i < ids.size(); ++i) tensors[i].remove_hook(ids[i]);
            }
        } hooks;
        for (int64_t i = 0; i < count; ++i) {
            hooks.tensors.push_back(*parameters[i]);
            hooks.ids.push_back(
                hooks.tensors.back().register_hook([=](const at::Tensor& gradient) { ready(context, i, &gradient); }));
        }
        torch::autograd::grad({*loss}, hooks.tensors, /*grad_outputs=*/{}, /*retain_graph=*/false,
                              /*create_graph=*/false, /*allow_unused=*/true);
    });
}

}  // extern "C"
