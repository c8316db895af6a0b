#include "emulation/block.h"

#include <algorithm>
#include <cstring>
#include <utility>

namespace fastmeta::emulation {
namespace {

bool same(const CallSite& a, const CallSite& b) {
  return a.line == b.line && !strcmp(a.call, b.call) && !strcmp(a.file, b.file);
}

std::string text(const CallSite& call_site) {
  const char* slash = strrchr(call_site.file, '/');
  return std::string(call_site.call) + " at " + (slash ? slash + 1 : call_site.file) + ":" +
         std::to_string(call_site.line);
}

std::string text(uint3 at) {
  return "(" + std::to_string(at.x) + ", " + std::to_string(at.y) + ", " + std::to_string(at.z) +
         ")";
}

uint3 index_of(int id) {
  const unsigned k = static_cast<unsigned>(id);
  return {k % blockDim.x, k / blockDim.x % blockDim.y, k / blockDim.x / blockDim.y};
}

bool is_index(const void* at) {
  const auto inside = [&](const uint3& index) { return &index <= at && at < &index + 1; };
  return inside(threadIdx) || inside(blockIdx);
}

constexpr size_t kCopyBytes = 16;
constexpr size_t kStrip = 256;          // guard bytes after the dynamic shared memory
constexpr unsigned char kUnset = 0xff;  // NaN as float and double

}  // namespace

Block& block() {
  static Block only;
  return only;
}

void Block::run(const std::string& kernel, Random& random, const std::function<void()>& body) {
  const int count = static_cast<int>(blockDim.x * blockDim.y * blockDim.z);
  threads_.assign(count, Thread{});
  copies_.assign(count, {});
  gathered_.resize((count + kLanes - 1) / kLanes);
  runnable_.resize(count);
  for (int id = 0; id < count; ++id) runnable_[id] = id;
  body_ = &body;
  kernel_ = kernel;
  waiting_ = ended_ = 0;
  error_ = nullptr;
  std::fill(shared_.begin(), shared_.end(), kUnset);
  memory_.begin_block();
  while (!error_ && !runnable_.empty()) step(random);
  if (!error_ && ended_ < count) error_ = std::make_exception_ptr(Fault(describe_stuck()));
  if (!error_ && std::count(shared_.end() - kStrip, shared_.end(), kUnset) != kStrip)
    error_ = std::make_exception_ptr(
        Fault(heading() + "some thread writes past the end of the dynamic shared memory"));
  if (!error_) return;
  // Drops suspended threads with their stacks: device code owns no resources.
  idle_.clear();
  fibers_.clear();
  std::rethrow_exception(std::exchange(error_, nullptr));
}

void Block::resize_shared(size_t bytes) {
  shared_.resize(bytes + kStrip);
  memory_.watch(shared_.data(), shared_.size());
}

void* Block::shared() {
  return shared_.data();
}

int Block::lane() const {
  return current_ % kLanes;
}

void Block::step(Random& random) {
  std::swap(runnable_[random() % runnable_.size()], runnable_.back());
  current_ = runnable_.back();
  runnable_.pop_back();
  threadIdx = index_of(current_);
  Thread& next = threads_[current_];
  if (next.state == State::fresh) next.fiber = idle_fiber();
  next.fiber->resume();
  if (next.state == State::ended) idle_.push_back(next.fiber);
}

Fiber* Block::idle_fiber() {
  if (idle_.empty()) {
    fibers_.push_back(std::make_unique<Fiber>([] { block().run_thread(); }));
    return fibers_.back().get();
  }
  Fiber* fiber = idle_.back();
  idle_.pop_back();
  return fiber;
}

void Block::run_thread() {
  try {
    (*body_)();
  } catch (...) {
    error_ = std::current_exception();
  }
  threads_[current_].state = State::ended;
  ++ended_;
}

void Block::make_ready(int id) {
  threads_[id].state = State::ready;
  runnable_.push_back(id);
}

void Block::barrier(CallSite call_site) {
  Thread& me = threads_[current_];
  if (me.needs_fence) fail("reaches a barrier without a __threadfence since its atomic operation");
  me.state = State::at_barrier;
  me.fenced = false;
  me.call_site = call_site;
  if (++waiting_ == static_cast<int>(threads_.size())) release_barrier();
  Fiber::leave();
}

void Block::release_barrier() {
  for (int id = 0; id < waiting_; ++id) {
    if (!same(threads_[id].call_site, threads_[current_].call_site))
      fail("is at another barrier than " + describe(id));
    make_ready(id);
  }
  waiting_ = 0;
  memory_.pass_barrier();
}

void Block::copy_later(void* to, const void* from) {
  if ((reinterpret_cast<uintptr_t>(to) | reinterpret_cast<uintptr_t>(from)) % kCopyBytes)
    fail("starts a copy of misaligned bytes");
  if (!Shadow::holds(to)) fail("starts a copy to an address outside of shared memory");
  copies_[current_].push_back({to, from});
}

void Block::wait_for_copies() {
  for (const Copy& copy : copies_[current_]) {
    access(copy.to, kCopyBytes, true);
    if (copy.from)
      memcpy(copy.to, copy.from, kCopyBytes);
    else
      memset(copy.to, 0, kCopyBytes);
  }
  copies_[current_].clear();
}

void Block::fence() {
  threads_[current_].fenced = true;
  threads_[current_].needs_fence = false;
}

void Block::atomic(CallSite call_site) {
  Thread& me = threads_[current_];
  if (!me.fenced)
    fail("has " + text(call_site) + " without a __threadfence since the last barrier");
  me.needs_fence = true;
}

void Block::access(const void* at, size_t bytes, bool writes) {
  if (!Fiber::inside_one() || is_index(at)) return;
  const Hazard hazard = memory_.access(current_, at, bytes, writes);
  if (!hazard.done) return;
  const std::string what = writes ? "writes shared memory that " : "reads shared memory that ";
  if (hazard.thread < 0) fail(what + "no thread has " + hazard.done);
  fail(what + describe(hazard.thread) + " has " + hazard.done + " since the last barrier");
}

uint64_t Block::exchange(CallSite call_site, unsigned mask, int source, uint64_t bits,
                         size_t bytes) {
  Thread& me = threads_[current_];
  me = {State::in_warp, me.fiber, me.fenced, me.needs_fence, call_site, mask, source, bits, bytes};
  if (!(mask >> lane() & 1)) fail("is not in its own mask");
  const int first = current_ - lane();
  bool complete = true;
  for (int l = 0; l < kLanes; ++l) {
    if (!(mask >> l & 1)) continue;
    if (first + l >= static_cast<int>(threads_.size()))
      fail("has lane " + std::to_string(l) + " in its mask, which the block does not have");
    const State state = threads_[first + l].state;
    if (state == State::ended) fail("has an ended lane in its mask: " + describe(first + l));
    complete = complete && state == State::in_warp;
  }
  if (complete) release_warp(first);
  Fiber::leave();
  return me.bits;
}

void Block::release_warp(int first) {
  const Thread& me = threads_[current_];
  const unsigned mask = me.mask;
  uint64_t given[kLanes] = {};
  unsigned vote = 0;
  for (int l = 0; l < kLanes; ++l) {
    if (!(mask >> l & 1)) continue;
    const Thread& other = threads_[first + l];
    if (other.mask != mask || !same(other.call_site, me.call_site))
      fail("meets another mask or call in its mask: " + describe(first + l));
    given[l] = other.bits;
    vote |= static_cast<unsigned>(other.bits != 0) << l;
  }
  unsigned char* all = gathered_[first / kLanes].bytes;
  if (me.source == kGather)
    for (int l = 0; l < kLanes; ++l)
      memcpy(all + l * me.bytes, reinterpret_cast<const void*>(given[l]), me.bytes);
  for (int l = 0; l < kLanes; ++l) {
    if (!(mask >> l & 1)) continue;
    Thread& other = threads_[first + l];
    if (other.source >= 0 && !(mask >> other.source & 1))
      fail("shares a warp with a reader of lane " + std::to_string(other.source) +
           ", which is not in the mask: " + describe(first + l));
    other.bits = other.source == kVote     ? vote
                 : other.source == kGather ? reinterpret_cast<uintptr_t>(all)
                                           : given[other.source];
    make_ready(first + l);
  }
}

void Block::fail(const std::string& what) {
  error_ = std::make_exception_ptr(Fault(heading() + describe(current_) + " " + what));
  for (;;) Fiber::leave();
}

std::string Block::heading() const {
  return "in block " + text(blockIdx) + " of " + kernel_ + ": ";
}

std::string Block::describe(int id) const {
  const Thread& thread = threads_[id];
  const std::string name = "thread " + text(index_of(id));
  if (thread.state == State::ended) return name + ", which has ended,";
  if (thread.state == State::at_barrier || thread.state == State::in_warp)
    return name + ", in " + text(thread.call_site) + ",";
  return name;
}

std::string Block::describe_stuck() const {
  const auto waits = [](const Thread& t) { return t.state != State::ended; };
  const auto waiter = std::find_if(threads_.begin(), threads_.end(), waits);
  const auto missing = [&](const Thread& t) { return t.state != waiter->state; };
  const auto absent = std::find_if(threads_.begin(), threads_.end(), missing);
  const std::string who = describe(static_cast<int>(waiter - threads_.begin()));
  if (absent == threads_.end()) return heading() + who + " waits for lanes that wait elsewhere";
  return heading() + who +
         " waits forever: a barrier needs every thread of the block, a shuffle "
         "or vote every lane of its mask, but " +
         describe(static_cast<int>(absent - threads_.begin())) + " does not arrive";
}

}  // namespace fastmeta::emulation
