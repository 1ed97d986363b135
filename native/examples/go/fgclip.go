package main

// #cgo pkg-config: fgclip_rt
// #include <fgclip_rt.h>
// #include <stdlib.h>
//
// static fgclip_options default_options(void) { return (fgclip_options)FGCLIP_OPTIONS_INIT; }
// static fgclip_text_request default_text_request(void) { return (fgclip_text_request)FGCLIP_TEXT_REQUEST_INIT; }
// static fgclip_error no_error(void) { return (fgclip_error)FGCLIP_ERROR_INIT; }
import "C"

import (
	"context"
	"image"
	"runtime"
	"unsafe"
)

// Error is a call that failed.
type Error struct {
	Status  int32
	Name    string // of the status, such as "bundle_missing"
	Index   int64  // of the image or text at fault; -1 if it is none
	Message string // the fault and its remedy
}

func (e *Error) Error() string { return e.Message }

func failure(status C.int32_t, e *C.fgclip_error) error {
	if status == C.FGCLIP_OK {
		return nil
	}
	return &Error{int32(status), C.GoString(C.fgclip_status_name(status)), int64(e.index), C.GoString(&e.message[0])}
}

// Model is a bundle, ready to run; any number of goroutines may use it at once.
type Model struct {
	handle *C.fgclip_model
	Dim    int // number of floats of every vector
}

// Open opens the bundle in a folder. The graphs are opened at their first use.
func Open(bundle string, threads int) (*Model, error) {
	path := C.CString(bundle)
	defer C.free(unsafe.Pointer(path))
	options, e := C.default_options(), C.no_error()
	options.threads = C.uint32_t(threads)
	var handle *C.fgclip_model
	if err := failure(C.fgclip_model_open(path, &options, &handle, &e), &e); err != nil {
		return nil, err
	}
	var dim C.uint32_t
	if err := failure(C.fgclip_model_dim(handle, &dim, &e), &e); err != nil {
		C.fgclip_model_close(handle)
		return nil, err
	}
	return &Model{handle, int(dim)}, nil
}

// Close frees the model. No call may be using it.
func (m *Model) Close() { C.fgclip_model_close(m.handle) }

// Probabilities gives the probability of each text for an image, from their vectors.
func (m *Model) Probabilities(image, texts []float32) ([]float32, error) {
	count := len(texts) / m.Dim
	if len(image) != m.Dim || len(texts) != count*m.Dim || count == 0 {
		return nil, &Error{C.FGCLIP_ARGUMENT_INVALID, "argument_invalid", -1,
			"vectors have other lengths than the model's; pass one image's and at least one text's."}
	}
	e := C.no_error()
	out := make([]float32, count)
	status := C.fgclip_probabilities(m.handle, (*C.float)(&image[0]), 1, (*C.float)(&texts[0]), C.size_t(count),
		(*C.float)(&out[0]), C.size_t(count), &e)
	return out, failure(status, &e)
}

// Worker is the memory of one goroutine's calls.
type Worker struct {
	handle *C.fgclip_context
	dim    int
}

// NewWorker makes a worker, which keeps what it needs of its model alive.
func (m *Model) NewWorker() (*Worker, error) {
	e := C.no_error()
	var handle *C.fgclip_context
	if err := failure(C.fgclip_context_new(m.handle, &handle, &e), &e); err != nil {
		return nil, err
	}
	return &Worker{handle, m.Dim}, nil
}

// Close frees the worker. No call may be using it.
func (w *Worker) Close() { C.fgclip_context_free(w.handle) }

// EmbedImage gives the vector of an image. Its alpha is dropped.
func (w *Worker) EmbedImage(ctx context.Context, picture *image.NRGBA) ([]float32, error) {
	size := picture.Rect.Size()
	if size.X <= 0 || size.Y <= 0 {
		return nil, &Error{C.FGCLIP_IMAGE_UNSUPPORTED, "image_unsupported", 0, "the image is empty; pass one with pixels."}
	}
	// A struct that Go hands to C may hold a pointer to Go's memory only while that is pinned.
	var pinner runtime.Pinner
	defer pinner.Unpin()
	pinner.Pin(&picture.Pix[0])
	input := C.fgclip_image{
		data:   (*C.uint8_t)(&picture.Pix[0]),
		stride: C.size_t(picture.Stride),
		width:  C.uint32_t(size.X),
		height: C.uint32_t(size.Y),
		format: C.FGCLIP_FORMAT_RGBA,
	}
	out := make([]float32, w.dim)
	return out, w.run(ctx, func(e *C.fgclip_error) C.int32_t {
		return C.fgclip_embed_images(w.handle, &input, 1, nil, (*C.float)(&out[0]), C.size_t(len(out)), e)
	})
}

// EmbedTexts gives the vectors of texts, one behind another.
func (w *Worker) EmbedTexts(ctx context.Context, texts []string) ([]float32, error) {
	if len(texts) == 0 {
		return nil, nil
	}
	pointers, lengths := make([]*C.char, len(texts)), make([]C.size_t, len(texts))
	var pinner runtime.Pinner
	defer pinner.Unpin()
	for i, text := range texts {
		pointers[i], lengths[i] = C.CString(text), C.size_t(len(text))
		defer C.free(unsafe.Pointer(pointers[i]))
	}
	pinner.Pin(&lengths[0])
	request := C.default_text_request()
	request.lengths = &lengths[0]
	out := make([]float32, len(texts)*w.dim)
	return out, w.run(ctx, func(e *C.fgclip_error) C.int32_t {
		return C.fgclip_embed_texts(w.handle, &pointers[0], C.size_t(len(texts)), &request, (*C.float)(&out[0]),
			C.size_t(len(out)), e)
	})
}

// run makes a call that ends when its context does.
func (w *Worker) run(ctx context.Context, call func(*C.fgclip_error) C.int32_t) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	cancelled := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		C.fgclip_context_cancel(w.handle, nil)
		close(cancelled)
	})
	e := C.no_error()
	status := call(&e)
	if !stop() {
		// Only once the other goroutine is done with it may the worker be made ready for its next call.
		<-cancelled
		C.fgclip_context_reset(w.handle, nil)
	}
	if status == C.FGCLIP_CANCELLED {
		return ctx.Err()
	}
	return failure(status, &e)
}
