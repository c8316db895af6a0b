// Kernels with one planted fault each, which the emulation must find, and correct ones, which it
// must accept.
#pragma once

#include "emulation/faults/barriers.h"
#include "emulation/faults/blocks.h"
#include "emulation/faults/correct.h"
#include "emulation/faults/memory.h"
#include "emulation/faults/tensor_cores.h"
#include "emulation/faults/warps.h"

namespace fastmeta::emulation::faults {

struct Entry {
  const char* name;
  void (*kernel)(const float*, int, float*);
};

#define FM_ENTRY(kernel) {#kernel, kernel}
constexpr Entry kAll[] = {
    FM_ENTRY(reverse),
    FM_ENTRY(reverse_dynamically),
    FM_ENTRY(half_warp_sums),
    FM_ENTRY(votes),
    FM_ENTRY(matrix_product),
    FM_ENTRY(matrix_rows),
    FM_ENTRY(reverse_by_copies),
    FM_ENTRY(missing_barrier),
    FM_ENTRY(missing_second_barrier),
    FM_ENTRY(two_writers),
    FM_ENTRY(divergent_barrier),
    FM_ENTRY(two_barriers),
    FM_ENTRY(mask_without_caller),
    FM_ENTRY(mask_of_ended_lanes),
    FM_ENTRY(mask_of_other_branch),
    FM_ENTRY(source_outside_mask),
    FM_ENTRY(shuffle_against_barrier),
    FM_ENTRY(unset_shared),
    FM_ENTRY(unset_dynamic),
    FM_ENTRY(stops_before_the_end),
    FM_ENTRY(reads_past_the_end),
    FM_ENTRY(overflowing_index),
    FM_ENTRY(writes_past_the_end),
    FM_ENTRY(tile_too_short),
    FM_ENTRY(dynamic_tile_too_short),
    FM_ENTRY(misaligned_words),
    FM_ENTRY(throws),
    FM_ENTRY(reverse_by_the_last_block),
    FM_ENTRY(ticket_not_reset),
    FM_ENTRY(one_block_too_early),
    FM_ENTRY(ticket_before_the_barrier),
    FM_ENTRY(no_fence_before_the_ticket),
    FM_ENTRY(no_fence_behind_the_ticket),
    FM_ENTRY(matrix_rows_without_barrier),
    FM_ENTRY(misaligned_matrix_row),
    FM_ENTRY(product_of_half_a_warp),
    FM_ENTRY(copies_without_wait),
};
#undef FM_ENTRY

}  // namespace fastmeta::emulation::faults
