/* Embeds the PPM files of a folder, and prints them in the order in which they fit a text. C++17, for its folders.
 *
 * Usage: search BUNDLE FOLDER TEXT
 */
#include <algorithm>
#include <exception>
#include <filesystem>
#include <fgclip_rt.hpp>
#include <iomanip>
#include <iostream>
#include <numeric>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "ppm.h"

namespace {

/* An image that owns its pixels. */
class picture {
public:
    explicit picture(const std::filesystem::path &path) {
        const char *fault = ppm_read(path.c_str(), &image_);
        if (fault != nullptr) {
            throw std::runtime_error(path.string() + " " + fault);
        }
    }

    picture(picture &&other) noexcept : image_(std::exchange(other.image_, {})) {}
    picture &operator=(picture &&) = delete;
    ~picture() { ppm_free(&image_); }

    const fgclip_image &view() const { return image_; }

private:
    fgclip_image image_ = {};
};

std::vector<std::filesystem::path> list(const std::filesystem::path &folder) {
    std::vector<std::filesystem::path> paths;
    for (const auto &entry : std::filesystem::directory_iterator(folder)) {
        if (entry.path().extension() == ".ppm") {
            paths.push_back(entry.path());
        }
    }
    std::sort(paths.begin(), paths.end());
    return paths;
}

/* One vector per file, [paths, D]. The pixels of one batch are in memory at a time. */
std::vector<float> embed(const fgclip::model &model, const std::vector<std::filesystem::path> &paths) {
    constexpr std::size_t batch_size = 16;
    const std::size_t dim = model.dim();
    fgclip::context context(model);
    std::vector<float> vectors(paths.size() * dim);
    for (std::size_t first = 0; first < paths.size(); first += batch_size) {
        const std::size_t last = std::min(first + batch_size, paths.size());
        std::vector<picture> pictures;
        std::vector<fgclip_image> views;
        for (std::size_t at = first; at < last; at++) {
            views.push_back(pictures.emplace_back(paths[at]).view());
        }
        context.embed_images(views, fgclip::span<float>(vectors).subspan(first * dim, views.size() * dim));
    }
    return vectors;
}

void search(const std::string &bundle, const std::filesystem::path &folder, const std::string &text) {
    const fgclip::model model(bundle);
    const auto paths = list(folder);
    const auto images = embed(model, paths);

    std::vector<float> query(model.dim()), logits(paths.size());
    fgclip::context(model).embed_text(text, query);
    model.logits(images, query, logits);

    std::vector<std::size_t> order(paths.size());
    std::iota(order.begin(), order.end(), std::size_t(0));
    std::stable_sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) { return logits[a] > logits[b]; });
    std::cout << std::fixed << std::setprecision(2);
    for (const std::size_t at : order) {
        std::cout << logits[at] << " " << paths[at].filename().string() << "\n";
    }
}

} // namespace

int main(int argc, char **argv) {
    if (argc != 4) {
        std::cerr << "usage: " << argv[0] << " BUNDLE FOLDER TEXT\n";
        return 2;
    }
    try {
        search(argv[1], argv[2], argv[3]);
    } catch (const fgclip::error &error) {
        std::cerr << error.name() << ": " << error.what() << "\n";
        return 1;
    } catch (const std::exception &error) {
        std::cerr << error.what() << "\n";
        return 1;
    }
    return 0;
}
