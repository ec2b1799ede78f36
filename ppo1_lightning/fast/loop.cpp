// Calls a graph that is compiled ahead of time for one row of its tensors after the other.
//
// In a loop of its own since Python's way to a graph takes as long as a small graph itself, and
// would hold the interpreter's lock meanwhile. `Create` is PyTorch's stable C function
// `aoti_torch_create_tensor_from_blob`, `Run` a graph's `run_graph` (steps.h).

#include <cstdint>
#include <vector>

struct TensorRows {
  char *data;            // of row 0
  int64_t row_bytes;     // from one row to the next, 0 for a tensor that is the same for all
  int64_t ndim;          // of a row
  const int64_t *sizes;
  const int64_t *strides;
  int64_t dtype;         // PyTorch's number
};

using Handle = void *;
using Create = int32_t (*)(void *, int64_t, const int64_t *, const int64_t *, int64_t, int32_t,
                           int32_t, int32_t, Handle *);
using Run = int32_t (*)(Handle *);

// Returns 0, or the number of the error that stopped it.
extern "C" int32_t run_rows(Create create, Run run, const TensorRows *tensors, int64_t count,
                            int64_t first, int64_t end) {
  const int32_t cpu = 0, any_index = -1;
  std::vector<Handle> handles(count);
  for (int64_t row = first; row < end; ++row) {
    for (int64_t i = 0; i < count; ++i) {
      const TensorRows &t = tensors[i];
      const int32_t error = create(t.data + row * t.row_bytes, t.ndim, t.sizes, t.strides, 0,
                                   static_cast<int32_t>(t.dtype), cpu, any_index, &handles[i]);
      if (error) return error;
    }
    const int32_t error = run(handles.data());
    if (error) return error;
  }
  return 0;
}
