#include "cpu/items.h"
#include "cpu/kernels.h"
#include "cpu/vectors.h"

namespace fastmeta::cpu::FM_ISA {
namespace {

constexpr int64_t kGrain = 8192;  // minimum elements per thread

// Calls body(item, rates, get, put) for every vector of elements; see each_vector.
template <class Body>
void each_element(const AdamwArgs& args, const Parallel& parallel, const Body& body) {
  dispatch(args.dtype, [&](auto zero) {
    using T = decltype(zero);
    const auto rates = args.rates.as<Acc<T>>();
    each_item(args.items, args.count, kGrain, parallel,
              [&](const AdamwItem& item, int64_t begin, int64_t end) {
                each_vector<T>(begin, end, [&](const auto& get, const auto& put) {
                  body(item, rates, get, put);
                });
              });
  });
}

constexpr auto kRoot = [](auto v) { return square_root(v); };

}  // namespace

void adamw_step(const AdamwArgs& args, const Parallel& parallel) {
  each_element(args, parallel,
               [](const AdamwItem& item, const auto& rates, const auto& get, const auto& put) {
                 auto theta = get(item.in[0], 0), mean = get(item.in[2], 0);
                 auto square = get(item.in[3], 0);
                 adamw_core(rates, kRoot, theta, get(item.in[1], 0), mean, square);
                 put(item.out[0], theta);
                 put(item.out[1], mean);
                 put(item.out[2], square);
               });
}

void adamw_adjoint(const AdamwArgs& args, const Parallel& parallel) {
  each_element(args, parallel,
               [](const AdamwItem& item, const auto& rates, const auto& get, const auto& put) {
                 auto grad = get(item.in[0], 0), d_theta = get(item.in[3], 0);
                 auto d_mean = get(item.in[4], 0), d_square = get(item.in[5], 0);
                 adamw_adjoint_core(rates, kRoot, grad, get(item.in[1], 0), get(item.in[2], 0),
                                    d_theta, d_mean, d_square);
                 put(item.out[0], d_theta);
                 put(item.out[1], grad);
                 put(item.out[2], d_mean);
                 put(item.out[3], d_square);
               });
}

}  // namespace fastmeta::cpu::FM_ISA
