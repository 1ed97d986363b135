package main

import (
	"context"
	"errors"
	"fmt"
	"image"
	"os"
	"testing"
	"time"
)

// open opens the bundle that the environment variable BUNDLE names.
func open(t *testing.T) (*Model, *Worker) {
	t.Helper()
	model, err := Open(os.Getenv("BUNDLE"), 1)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(model.Close)
	worker, err := model.NewWorker()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(worker.Close)
	return model, worker
}

func TestErrorsHaveTheirStatusAndIndex(t *testing.T) {
	_, worker := open(t)
	var failed *Error
	_, err := worker.EmbedTexts(context.Background(), []string{"a cat", "\xff"})
	if !errors.As(err, &failed) || failed.Name != "text_invalid" || failed.Index != 1 {
		t.Fatalf("%#v", err)
	}
	_, err = Open("nowhere", 1)
	if !errors.As(err, &failed) || failed.Name != "bundle_missing" || failed.Index != -1 {
		t.Fatalf("%#v", err)
	}
	_, err = worker.EmbedImage(context.Background(), image.NewNRGBA(image.Rect(0, 0, 0, 1)))
	if !errors.As(err, &failed) || failed.Name != "image_unsupported" {
		t.Fatalf("%#v", err)
	}
}

func TestACallEndsWithItsContextAndTheNextOneRuns(t *testing.T) {
	model, worker := open(t)
	texts := make([]string, 100000)
	for i := range texts {
		texts[i] = fmt.Sprint("text ", i)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
	defer cancel()
	begin := time.Now()
	if _, err := worker.EmbedTexts(ctx, texts); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("%v after %v", err, time.Since(begin))
	}
	vectors, err := worker.EmbedTexts(context.Background(), []string{"a cat", "a dog"})
	if err != nil || len(vectors) != 2*model.Dim {
		t.Fatal(err, len(vectors))
	}
}

// A part of an image shares the memory of the whole one, with its stride.
func TestAPartOfAnImageIsThatPart(t *testing.T) {
	_, worker := open(t)
	whole, part := image.NewNRGBA(image.Rect(0, 0, 60, 40)), image.NewNRGBA(image.Rect(0, 0, 20, 30))
	for i := range whole.Pix {
		whole.Pix[i] = uint8(i * 7)
	}
	for y := 0; y < 30; y++ {
		copy(part.Pix[y*part.Stride:(y+1)*part.Stride], whole.Pix[whole.PixOffset(11, y+5):])
	}
	one, err := worker.EmbedImage(context.Background(), whole.SubImage(image.Rect(11, 5, 31, 35)).(*image.NRGBA))
	if err != nil {
		t.Fatal(err)
	}
	other, err := worker.EmbedImage(context.Background(), part)
	if err != nil {
		t.Fatal(err)
	}
	for i := range one {
		if one[i] != other[i] {
			t.Fatalf("%v, not %v", one[i], other[i])
		}
	}
}
