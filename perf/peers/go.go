// Go, on one processor.
package main

import (
	"fmt"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"time"
)

const (
	yieldCount = 1000000
	spawnCount = 200000
	itemCount  = 500000
	lockCount  = 5000000
	sleepCount = 100000
)

func figure(name string, d time.Duration, count int) {
	fmt.Printf("%s\t%.3f\n", name, float64(d.Nanoseconds())/float64(count))
}

// Of the whole process, the collector's work included.
func cpu() time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		panic(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

func yields(tasks int) {
	var all sync.WaitGroup
	var began time.Duration
	left, measuring, done := 4*tasks, false, false
	all.Add(tasks)
	for i := 0; i < tasks; i++ {
		go func() {
			defer all.Done()
			for !done {
				runtime.Gosched()
				left--
				if left > 0 || done {
					continue
				}
				if measuring {
					done = true
					figure(fmt.Sprintf("yield_%d", tasks), cpu()-began, yieldCount)
				} else {
					measuring, left, began = true, yieldCount, cpu()
				}
			}
		}()
	}
	all.Wait()
}

func spawnAndJoin() {
	var one sync.WaitGroup
	began := cpu()
	for i := 0; i < spawnCount; i++ {
		one.Add(1)
		go func() { one.Done() }()
		one.Wait()
	}
	figure("spawn", cpu()-began, spawnCount)
}

func handOver() {
	c := make(chan int64)
	began := cpu()
	go func() {
		for i := int64(0); i < itemCount; i++ {
			c <- i
		}
		close(c)
	}()
	sum := int64(0)
	for item := range c {
		sum += item
	}
	if sum == int64(itemCount)*(itemCount-1)/2 {
		figure("channel", cpu()-began, itemCount)
	}
}

func lockAndUnlock() {
	var m sync.Mutex
	began := cpu()
	for i := 0; i < lockCount; i++ {
		m.Lock()
		m.Unlock()
	}
	figure("mutex", cpu()-began, lockCount)
}

// How much CPU time a batch took; false: the last goroutine came to its sleep when the first was due already.
func sleepAll(lead, spread time.Duration) (time.Duration, bool) {
	var all sync.WaitGroup
	var first time.Time
	begun, inTime := 0, false
	before := cpu()
	all.Add(sleepCount)
	for i := 0; i < sleepCount; i++ {
		go func() {
			defer all.Done()
			if begun == 0 {
				first = time.Now().Add(lead)
			}
			share := int64(begun) * 48271 % sleepCount
			begun++
			if begun == sleepCount {
				inTime = time.Now().Before(first)
			}
			time.Sleep(time.Until(first.Add(spread / sleepCount * time.Duration(share))))
		}()
	}
	all.Wait()
	return cpu() - before, inTime
}

func sleeps(name string, spread time.Duration) {
	for lead := time.Second / 2; ; lead *= 2 {
		if used, inTime := sleepAll(lead, spread); inTime {
			figure(name, used, sleepCount)
			return
		}
	}
}

func main() {
	runtime.GOMAXPROCS(1)
	fmt.Printf("version\t%s\n", strings.TrimPrefix(runtime.Version(), "go"))
	yields(2)
	yields(1000)
	spawnAndJoin()
	handOver()
	lockAndUnlock()
	sleepAll(time.Second/2, 0) // makes goroutines and their stacks for the ones to come
	sleeps("together", 0)
	sleeps("spread", time.Second)
}
