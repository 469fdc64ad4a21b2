// Command judge says what the tools of others make of resources: kstatus by its own library (Flux and kubectl's appliers
// call it), and an Argo CD health script by the interpreter that Argo CD runs, with the libraries that it opens.
//
//	judge health.lua < resources.json > verdicts.json
//
// It decides nothing, and knows no kind: a list of resources comes in, a list of verdicts goes out, in the same order.
package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"

	lua "github.com/yuin/gopher-lua"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	numbers "k8s.io/apimachinery/pkg/util/json"
	"sigs.k8s.io/cli-utils/pkg/kstatus/status"
)

type verdict struct {
	Kstatus        string `json:"kstatus"`
	KstatusMessage string `json:"kstatusMessage"`
	Argo           string `json:"argo"`
	ArgoMessage    string `json:"argoMessage"`
}

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run() error {
	if len(os.Args) != 2 {
		return fmt.Errorf("usage: judge health.lua < resources.json")
	}
	script, err := os.ReadFile(os.Args[1])
	if err != nil {
		return err
	}
	written, err := io.ReadAll(os.Stdin)
	if err != nil {
		return err
	}
	var resources []any
	if err := numbers.Unmarshal(written, &resources); err != nil { // whole numbers become int64, as kstatus wants them
		return err
	}
	verdicts := make([]verdict, 0, len(resources))
	for _, each := range resources {
		resource, isResource := each.(map[string]any)
		if !isResource {
			return fmt.Errorf("not a resource: %v", each)
		}
		result, err := status.Compute(&unstructured.Unstructured{Object: resource})
		if err != nil {
			return err
		}
		health, words, err := health(string(script), resource)
		if err != nil {
			return err
		}
		verdicts = append(verdicts, verdict{result.Status.String(), result.Message, health, words})
	}
	return json.NewEncoder(os.Stdout).Encode(verdicts)
}

// health runs the script as Argo CD does: base, table and package are there, string and math are not.
func health(script string, resource map[string]any) (string, string, error) {
	machine := lua.NewState(lua.Options{SkipOpenLibs: true})
	defer machine.Close()
	for name, open := range map[string]lua.LGFunction{
		lua.LoadLibName: lua.OpenPackage, lua.BaseLibName: lua.OpenBase, lua.TabLibName: lua.OpenTable,
	} {
		if err := machine.CallByParam(lua.P{Fn: machine.NewFunction(open), Protect: true}, lua.LString(name)); err != nil {
			return "", "", err
		}
	}
	machine.SetGlobal("obj", toLua(machine, resource))
	if err := machine.DoString(script); err != nil {
		return "", "", err
	}
	answer, isTable := machine.Get(-1).(*lua.LTable)
	if !isTable {
		return "", "", fmt.Errorf("the health script returns no table")
	}
	return lua.LVAsString(answer.RawGetString("status")), lua.LVAsString(answer.RawGetString("message")), nil
}

func toLua(machine *lua.LState, value any) lua.LValue {
	switch typed := value.(type) {
	case map[string]any:
		table := machine.NewTable()
		for key, each := range typed {
			table.RawSetString(key, toLua(machine, each))
		}
		return table
	case []any:
		table := machine.NewTable()
		for _, each := range typed {
			table.Append(toLua(machine, each))
		}
		return table
	case string:
		return lua.LString(typed)
	case int64:
		return lua.LNumber(typed)
	case float64:
		return lua.LNumber(typed)
	case bool:
		return lua.LBool(typed)
	}
	return lua.LNil
}
