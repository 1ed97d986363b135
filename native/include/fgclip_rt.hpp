/* fgclip_rt.hpp: fgclip_rt.h for C++11 and any later C++.
 *
 *     fgclip::model model("bundle");                 // shared by threads
 *     fgclip::context context(model);                // one for each thread
 *     std::vector<float> vectors(2 * model.dim());
 *     context.embed_texts({"a cat", "a dog"}, vectors);
 *
 * The rules of fgclip_rt.h hold: threads, fork, memory, deployment. A class owns its handle, can be moved, and cannot be
 * copied; one that was moved from can only be assigned to or destroyed. A failure is an fgclip::error, which carries the
 * status, the index and the sentence. Results are written into a span of the caller, whose size is the capacity.
 *
 * Nothing here allocates but fgclip::error and fgclip::texts. Nothing is compiled apart: link fgclip_rt as from C.
 */
#ifndef FGCLIP_RT_HPP
#define FGCLIP_RT_HPP

#include "fgclip_rt.h"

#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <memory>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

namespace fgclip {

/* A call that failed; what() is the sentence with the fault and its remedy. */
class error : public std::runtime_error {
public:
    explicit error(const fgclip_error &outcome)
        : std::runtime_error(outcome.message), status_(outcome.status), index_(outcome.index),
          needed_(outcome.needed) {}

    error(std::int32_t status, const char *message) : std::runtime_error(message), status_(status) {}

    std::int32_t status() const noexcept { return status_; }

    /* Name of the status, such as "bundle_missing". */
    const char *name() const noexcept { return fgclip_status_name(status_); }

    /* Position in the call of the image, text, box or mask at fault; -1 if it is none. */
    std::int64_t index() const noexcept { return index_; }

    /* With FGCLIP_BUFFER_TOO_SMALL, the number of items that the call needs; else 0. */
    std::uint64_t needed() const noexcept { return needed_; }

private:
    std::int32_t status_;
    std::int64_t index_ = -1;
    std::uint64_t needed_ = 0;
};

/* Items that lie one behind another and belong to somebody else: an array, a std::vector, a std::array, a std::string, a
 * std::span, or a pointer and a number. */
template <class T> class span {
    template <class U> using is_ours = std::is_convertible<typename std::remove_pointer<U>::type (*)[], T (*)[]>;

public:
    span() noexcept : data_(nullptr), size_(0) {}
    span(T *data, std::size_t size) noexcept : data_(data), size_(size) {}
    template <std::size_t N> span(T (&array)[N]) noexcept : data_(array), size_(N) {}

    template <class C, class = typename std::enable_if<is_ours<decltype(std::declval<C &>().data())>::value>::type>
    span(C &&container) noexcept : data_(container.data()), size_(container.size()) {}

    T *data() const noexcept { return data_; }
    std::size_t size() const noexcept { return size_; }
    bool empty() const noexcept { return size_ == 0; }
    T *begin() const noexcept { return data_; }
    T *end() const noexcept { return data_ + size_; }
    T &operator[](std::size_t index) const noexcept { return data_[index]; }
    span subspan(std::size_t first, std::size_t count) const noexcept { return span(data_ + first, count); }

private:
    T *data_;
    std::size_t size_;
};

/* The structs of fgclip_rt.h with their defaults. Strings and arrays that their pointers name are borrowed. */
template <class Struct> struct defaults : Struct {
    defaults() noexcept : Struct() { this->struct_size = static_cast<std::uint32_t>(sizeof(Struct)); }
};

using options = defaults<fgclip_options>;
using image_request = defaults<fgclip_image_request>;
using text_request = defaults<fgclip_text_request>;
using region_request = defaults<fgclip_region_request>;
using mask_request = defaults<fgclip_mask_request>;

/* An image whose pixels belong to the caller. A stride of 0 means that there are no bytes between rows. */
inline fgclip_image make_image(const std::uint8_t *data, std::uint32_t width, std::uint32_t height,
                               std::int32_t format = FGCLIP_FORMAT_RGB, std::size_t stride = 0) noexcept {
    fgclip_image image = fgclip_image();
    image.data = data;
    image.stride = stride;
    image.width = width;
    image.height = height;
    image.format = format;
    return image;
}

/* A list of texts in UTF-8. It holds where they are and how long, so they must outlive it; they may hold NUL. */
class texts {
public:
    texts() = default;
    texts(std::initializer_list<const char *> list) { assign(list); }

    /* Of strings or string views. */
    template <class Range> explicit texts(const Range &range) { assign(range); }
    template <class Range> explicit texts(const Range &&range) = delete; /* its strings would be gone */

    void push_back(const char *text) { push_back(text, std::char_traits<char>::length(text)); }
    void push_back(const std::string &text) { push_back(text.data(), text.size()); }
    void push_back(const std::string &&text) = delete;
    void push_back(const char *data, std::size_t bytes) {
        lengths_.push_back(bytes);
        try {
            data_.push_back(bytes == 0 ? "" : data); /* an empty view has no memory */
        } catch (...) {
            lengths_.pop_back();
            throw;
        }
    }

    void clear() noexcept {
        data_.clear();
        lengths_.clear();
    }

    std::size_t size() const noexcept { return data_.size(); }
    const char *const *data() const noexcept { return data_.data(); }
    const std::size_t *lengths() const noexcept { return lengths_.data(); }

private:
    template <class Range> void assign(const Range &range) {
        data_.reserve(range.size());
        lengths_.reserve(range.size());
        for (const auto &text : range) {
            add(text);
        }
    }

    void add(const char *text) { push_back(text); }
    template <class Text> void add(const Text &text) { push_back(text.data(), text.size()); }

    std::vector<const char *> data_;
    std::vector<std::size_t> lengths_;
};

namespace detail {

struct outcome : fgclip_error {
    outcome() noexcept : fgclip_error() { struct_size = static_cast<std::uint32_t>(sizeof(fgclip_error)); }
};

inline void check(std::int32_t status, const outcome &outcome) {
    if (status != FGCLIP_OK) {
        throw error(outcome);
    }
}

/* The number of rows of `width` items that `size` items are. */
inline std::size_t rows(std::size_t size, std::size_t width, const char *message) {
    if (width == 0 || size % width != 0) {
        throw error(FGCLIP_ARGUMENT_INVALID, message);
    }
    return size / width;
}

struct deleter {
    void operator()(fgclip_model *model) const noexcept { fgclip_model_close(model); }
    void operator()(fgclip_context *context) const noexcept { fgclip_context_free(context); }
};

} // namespace detail

/* A bundle, ready to run. Its functions are const, so that any number of threads may use it at once. */
class model {
public:
    explicit model(const char *bundle, const fgclip_options &chosen = options()) : dim_(0) {
        detail::outcome outcome;
        fgclip_model *opened = nullptr;
        detail::check(fgclip_model_open(bundle, &chosen, &opened, &outcome), outcome);
        handle_.reset(opened);
        detail::check(fgclip_model_dim(opened, &dim_, &outcome), outcome);
    }

    explicit model(const std::string &bundle, const fgclip_options &chosen = options())
        : model(bundle.c_str(), chosen) {}

    const fgclip_model *get() const noexcept { return handle_.get(); }

    /* D, the number of floats of every vector. */
    std::uint32_t dim() const noexcept { return dim_; }

    /* Text of the bundle's manifest.json; it is the model's. */
    const char *manifest() const {
        detail::outcome outcome;
        const char *json = nullptr;
        detail::check(fgclip_model_manifest(get(), &json, &outcome), outcome);
        return json;
    }

    /* JSON that says which libonnxruntime, device and options run, and why; it is the model's. */
    const char *runtime_info() const {
        detail::outcome outcome;
        const char *json = nullptr;
        detail::check(fgclip_model_runtime_info(get(), &json, &outcome), outcome);
        return json;
    }

    /* L, the number of token ids of a text of this kind; null means "short". */
    std::uint32_t token_count(const char *walk_type = nullptr) const {
        detail::outcome outcome;
        std::uint32_t count = 0;
        detail::check(fgclip_model_token_count(get(), walk_type, &count, &outcome), outcome);
        return count;
    }

    /* Where an image of these sides is resized to. */
    fgclip_grid grid(std::uint32_t width, std::uint32_t height, std::uint32_t max_num_patches = 0) const {
        detail::outcome outcome;
        fgclip_grid grid = fgclip_grid();
        detail::check(fgclip_model_grid(get(), width, height, max_num_patches, &grid, &outcome), outcome);
        return grid;
    }

    /* Opens graphs now: flags FGCLIP_GRAPH_... joined by |, or 0 for all. */
    void warm(std::uint32_t graphs = 0) const {
        detail::outcome outcome;
        detail::check(fgclip_model_warm(get(), graphs, &outcome), outcome);
    }

    /* Logits [images, texts] of vectors [images, D] and [texts, D]. */
    void logits(span<const float> images, span<const float> texts, span<float> out) const {
        score(fgclip_logits, images, texts, out);
    }

    /* Their probabilities. */
    void probabilities(span<const float> images, span<const float> texts, span<float> out) const {
        score(fgclip_probabilities, images, texts, out);
    }

    /* Token ids [texts, L], and a one for each real token in `mask`, which may be empty. */
    void tokenize(const texts &texts, span<std::int32_t> ids, span<std::int32_t> mask = span<std::int32_t>(),
                  fgclip_text_request request = text_request()) const {
        if (!mask.empty() && mask.size() != ids.size()) {
            throw error(FGCLIP_ARGUMENT_INVALID, "mask has another size than ids; pass as many items, or none.");
        }
        detail::outcome outcome;
        request.lengths = texts.lengths();
        detail::check(fgclip_tokenize(get(), texts.data(), texts.size(), &request, ids.data(),
                                      mask.empty() ? nullptr : mask.data(), ids.size(), &outcome),
                      outcome);
    }

private:
    template <class Function>
    void score(Function function, span<const float> images, span<const float> texts, span<float> out) const {
        static const char *const message = "vectors are no multiple of D floats; pass [n, D] of this model.";
        detail::outcome outcome;
        detail::check(function(get(), images.data(), detail::rows(images.size(), dim_, message), texts.data(),
                               detail::rows(texts.size(), dim_, message), out.data(), out.size(), &outcome),
                      outcome);
    }

    std::unique_ptr<fgclip_model, detail::deleter> handle_;
    std::uint32_t dim_;
};

/* The memory of one thread's calls. It keeps what it needs of its model alive. */
class context {
public:
    explicit context(const model &model) {
        detail::outcome outcome;
        fgclip_context *made = nullptr;
        detail::check(fgclip_context_new(model.get(), &made, &outcome), outcome);
        handle_.reset(made);
    }

    fgclip_context *get() const noexcept { return handle_.get(); }

    /* Ends the call that runs, from another thread, and every later one until reset(). */
    void cancel() const {
        detail::outcome outcome;
        detail::check(fgclip_context_cancel(get(), &outcome), outcome);
    }

    /* Lets calls begin again. */
    void reset() {
        detail::outcome outcome;
        detail::check(fgclip_context_reset(get(), &outcome), outcome);
    }

    /* One vector per image, [images, D]. */
    void embed_images(span<const fgclip_image> images, span<float> out,
                      const fgclip_image_request &request = image_request()) {
        detail::outcome outcome;
        detail::check(
            fgclip_embed_images(get(), images.data(), images.size(), &request, out.data(), out.size(), &outcome),
            outcome);
    }

    void embed_image(const fgclip_image &image, span<float> out,
                     const fgclip_image_request &request = image_request()) {
        embed_images(span<const fgclip_image>(&image, 1), out, request);
    }

    /* One vector per text, [texts, D]. `request.truncated` is null or has one byte per text. */
    void embed_texts(const texts &texts, span<float> out, fgclip_text_request request = text_request()) {
        detail::outcome outcome;
        request.lengths = texts.lengths();
        detail::check(
            fgclip_embed_texts(get(), texts.data(), texts.size(), &request, out.data(), out.size(), &outcome), outcome);
    }

    /* The vector of one text, without the memory of a list. */
    void embed_text(const char *data, std::size_t bytes, span<float> out,
                    fgclip_text_request request = text_request()) {
        detail::outcome outcome;
        request.lengths = &bytes;
        detail::check(fgclip_embed_texts(get(), &data, 1, &request, out.data(), out.size(), &outcome), outcome);
    }

    void embed_text(const std::string &text, span<float> out, const fgclip_text_request &request = text_request()) {
        embed_text(text.data(), text.size(), out, request);
    }

    /* One vector per patch, [rows, columns, D]. */
    fgclip_grid dense(const fgclip_image &image, span<float> out,
                      const fgclip_image_request &request = image_request()) {
        detail::outcome outcome;
        fgclip_grid grid = fgclip_grid();
        detail::check(fgclip_dense(get(), &image, &request, out.data(), out.size(), &grid, &outcome), outcome);
        return grid;
    }

    /* One vector per box, [boxes, D]; a box is four numbers. */
    void regions(const fgclip_image &image, span<const double> boxes, span<float> out,
                 const fgclip_region_request &request = region_request()) {
        detail::outcome outcome;
        const std::size_t count = detail::rows(boxes.size(), 4, "boxes are no multiple of 4 numbers; pass [n, 4].");
        detail::check(
            fgclip_regions(get(), &image, boxes.data(), count, &request, out.data(), out.size(), &outcome), outcome);
    }

    /* One vector per mask, [masks, D]; masks are [masks, height, width], floats from 0 to 1. */
    void masks(const fgclip_image &image, span<const float> masks, std::uint32_t width, std::uint32_t height,
               span<float> out, fgclip_mask_request request = mask_request()) {
        request.mask_type = FGCLIP_MASK_FLOAT32;
        pool(image, masks.data(), masks.size(), width, height, out, request);
    }

    /* The same with bytes, zero or not. */
    void masks(const fgclip_image &image, span<const std::uint8_t> masks, std::uint32_t width, std::uint32_t height,
               span<float> out, fgclip_mask_request request = mask_request()) {
        request.mask_type = FGCLIP_MASK_BOOL;
        pool(image, masks.data(), masks.size(), width, height, out, request);
    }

    /* Patches of an image, bytes [rows · columns, P · P · 3]. */
    fgclip_grid prepare_image(const fgclip_image &image, span<std::uint8_t> out,
                              const fgclip_image_request &request = image_request()) {
        detail::outcome outcome;
        fgclip_grid grid = fgclip_grid();
        detail::check(fgclip_prepare_image(get(), &image, &request, out.data(), out.size(), &grid, &outcome), outcome);
        return grid;
    }

    /* One vector per prepared image, [grids, D]. */
    void embed_patches(span<const std::uint8_t> patches, span<const fgclip_grid> grids, span<float> out,
                       const fgclip_image_request &request = image_request()) {
        detail::outcome outcome;
        detail::check(fgclip_embed_patches(get(), patches.data(), patches.size(), grids.data(), grids.size(), &request,
                                           out.data(), out.size(), &outcome),
                      outcome);
    }

    /* One vector per tokenised text, [texts, D], of what tokenize() of the same model gave; `mask` may be empty if the
     * model takes none. */
    void embed_tokens(const model &model, span<const std::int32_t> ids, span<const std::int32_t> mask, span<float> out,
                      const fgclip_text_request &request = text_request()) {
        const std::size_t count = detail::rows(ids.size(), model.token_count(request.walk_type),
                                               "ids are no multiple of L; pass [n, L] of this walk type.");
        if (!mask.empty() && mask.size() != ids.size()) {
            throw error(FGCLIP_ARGUMENT_INVALID, "mask has another size than ids; pass as many items, or none.");
        }
        detail::outcome outcome;
        detail::check(fgclip_embed_tokens(get(), ids.data(), mask.empty() ? nullptr : mask.data(), count, &request,
                                          out.data(), out.size(), &outcome),
                      outcome);
    }

private:
    void pool(const fgclip_image &image, const void *masks, std::size_t size, std::uint32_t width,
              std::uint32_t height, span<float> out, fgclip_mask_request &request) {
        const std::size_t count = detail::rows(size, static_cast<std::size_t>(width) * height,
                                               "masks are no multiple of width · height; pass [n, height, width].");
        detail::outcome outcome;
        request.mask_width = width;
        request.mask_height = height;
        detail::check(fgclip_masks(get(), &image, masks, count, &request, out.data(), out.size(), &outcome), outcome);
    }

    std::unique_ptr<fgclip_context, detail::deleter> handle_;
};

/* Has onnxruntime's messages passed to `log`; null drops them, as at first. */
inline void set_log(fgclip_log_function log, void *user = nullptr) {
    detail::outcome outcome;
    detail::check(fgclip_set_log(log, user, &outcome), outcome);
}

} // namespace fgclip

#endif
