// The conv ops: schemas, checks and allocation; see library.cpp on gradients.
#include "fastmeta/conv.h"

#include "cpu/kernels.h"
#include "ops/images.h"

namespace fastmeta {
namespace {

void require_images(const Tensor& t, const char* name) {
  FM_REQUIRE(t.dim() == 4 && t.numel() > 0,
             std::string("conv3x3: expected non-empty (N, C, H, W) ") + name + ", got shape " +
                 shape_of(t) + ".");
  FM_REQUIRE(t.scalar_type() == ScalarType::Float || t.scalar_type() == ScalarType::Double,
             std::string("conv3x3: ") + name +
                 " must be float32 or float64. Convert them with .to(), or use torch's conv2d.");
}

// All sizes but the channels, for images in `groups` groups.
ConvShape shape_for(const Tensor& images, int64_t groups, int64_t h, int64_t w, int64_t stride) {
  FM_REQUIRE(stride == 1 || stride == 2, "conv3x3: the stride must be 1 or 2, got " +
                                             std::to_string(stride) + ". Use torch's conv2d.");
  FM_REQUIRE(groups > 0 && images.size(0) % groups == 0,
             "conv3x3: " + std::to_string(images.size(0)) + " images cannot be divided into " +
                 std::to_string(groups) + " groups of equal size.");
  return {dtype_of(images), groups, images.size(0) / groups, h, w, 0, 0, stride};
}

// G for weights (G, out, in, 3, 3), and 1 for (out, in, 3, 3).
int64_t groups_of(const Tensor& weight) {
  return weight.dim() == 5 ? weight.size(0) : 1;
}

void read_weight(const Tensor& weight, const Tensor& images, ConvShape& shape) {
  const int64_t d = weight.dim();
  FM_REQUIRE((d == 4 || d == 5) && weight.size(d - 1) == 3 && weight.size(d - 2) == 3 &&
                 weight.numel() > 0,
             "conv3x3: expected weights (out, in, 3, 3) or (groups, out, in, 3, 3), got shape " +
                 shape_of(weight) + ".");
  FM_REQUIRE(same_kind(weight, images),
             "conv3x3: the weights must have the dtype and device of the images.");
  shape.out = weight.size(d - 4);
  shape.in = weight.size(d - 3);
}

void require_channels(const Tensor& images, int64_t channels, const Tensor& weight) {
  FM_REQUIRE(images.size(1) == channels, "conv3x3: images " + shape_of(images) +
                                             " do not match weights " + shape_of(weight) + ".");
}

void require_output(const Tensor& dy, const ConvShape& s) {
  FM_REQUIRE(s.h > 0 && s.w > 0 && dy.size(2) == s.out_h() && dy.size(3) == s.out_w(),
             "conv3x3: a gradient " + shape_of(dy) + " does not match an input of " +
                 std::to_string(s.h) + " x " + std::to_string(s.w) + " pixels at stride " +
                 std::to_string(s.stride) + ".");
}

Tensor conv_forward(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias,
                    int64_t stride) {
  require_images(x, "images");
  ConvShape shape = shape_for(x, groups_of(weight), x.size(2), x.size(3), stride);
  read_weight(weight, x, shape);
  require_channels(x, shape.in, weight);
  FM_REQUIRE(
      !bias ||
          (same_kind(*bias, x) && bias->dim() == weight.dim() - 3 &&
           bias->numel() == shape.groups * shape.out && bias->size(bias->dim() - 1) == shape.out),
      "conv3x3: the bias must have one value per output channel (and group), of the dtype and "
      "device of the images; got shape " +
          shape_of(*bias) + " for weights " + shape_of(weight) + ".");
  const Tensor parts[] = {channels_last(x), dense(weight), bias ? dense(*bias) : weight};
  Tensor y = empty_images(x, {x.size(0), shape.out, shape.out_h(), shape.out_w()});
  cpu::kernels().conv_forward({shape, parts[0].const_data_ptr(), parts[1].const_data_ptr(),
                               bias ? parts[2].const_data_ptr() : nullptr, y.mutable_data_ptr()},
                              torch_threads());
  return y;
}

Tensor conv_input(const Tensor& dy, const Tensor& weight, int64_t h, int64_t w, int64_t stride) {
  require_images(dy, "gradients");
  ConvShape shape = shape_for(dy, groups_of(weight), h, w, stride);
  read_weight(weight, dy, shape);
  require_channels(dy, shape.out, weight);
  require_output(dy, shape);
  const Tensor parts[] = {channels_last(dy), dense(weight)};
  Tensor dx = empty_images(dy, {dy.size(0), shape.in, h, w});
  cpu::kernels().conv_input(
      {shape, parts[0].const_data_ptr(), parts[1].const_data_ptr(), dx.mutable_data_ptr()},
      torch_threads());
  return dx;
}

Tensors conv_weight(const Tensor& x, const Tensor& dy, int64_t stride,
                    std::optional<int64_t> groups) {
  require_images(x, "images");
  require_images(dy, "gradients");
  ConvShape shape = shape_for(x, groups.value_or(1), x.size(2), x.size(3), stride);
  shape.in = x.size(1);
  shape.out = dy.size(1);
  FM_REQUIRE(same_kind(x, dy) && x.size(0) == dy.size(0),
             "conv3x3: images " + shape_of(x) + " and gradients " + shape_of(dy) +
                 " must agree in number, dtype and device.");
  require_output(dy, shape);
  const Tensor parts[] = {channels_last(x), channels_last(dy)};
  Ints sizes{shape.out, shape.in, 3, 3}, channels{shape.out};
  if (groups) {
    sizes.insert(sizes.begin(), *groups);
    channels.insert(channels.begin(), *groups);
  }
  Tensors out{empty(x, sizes, x.scalar_type()), empty(x, channels, x.scalar_type())};
  cpu::kernels().conv_weight({shape, parts[0].const_data_ptr(), parts[1].const_data_ptr(),
                              out[0].mutable_data_ptr(), out[1].mutable_data_ptr()},
                             torch_threads());
  return out;
}

}  // namespace
}  // namespace fastmeta

STABLE_TORCH_LIBRARY_FRAGMENT(fastmeta, m) {
  m.def("conv_forward(Tensor x, Tensor weight, Tensor? bias, int stride) -> Tensor");
  m.def("conv_input(Tensor dy, Tensor weight, int h, int w, int stride) -> Tensor");
  m.def("conv_weight(Tensor x, Tensor dy, int stride, int? groups) -> Tensor[]");
}

STABLE_TORCH_LIBRARY_IMPL(fastmeta, CPU, m) {
  m.impl("conv_forward", TORCH_BOX(&fastmeta::conv_forward));
  m.impl("conv_input", TORCH_BOX(&fastmeta::conv_input));
  m.impl("conv_weight", TORCH_BOX(&fastmeta::conv_weight));
}
